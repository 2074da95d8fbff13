"""The layers of any network: trace, summary table, drawing and features."""
