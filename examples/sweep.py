"""Tries learning rates and networks, puts the results into a DataFrame, and compares the best two runs.

pip install pandas && python examples/sweep.py
"""

from itertools import product

import pandas

from flowers_torch import compare_runs, train

rows = []
for network, lr in product(("resnet18", "mobilenetv3_small_100"), (3e-4, 1e-3)):
    result = train("my_photos", network, epochs=(1, 1), quiet=True, **{"stages.finetune.lr": lr})
    val = max(epoch["val_accuracy"] for epoch in result.history)
    rows.append({"network": network, "lr": lr, "val": val, "test": result.accuracy, "folder": result.folder})
table = pandas.DataFrame(rows).sort_values("val", ascending=False)
print(table.to_string(index=False))
print(compare_runs(list(table.folder[:2])).pairs[0][2].verdict())
