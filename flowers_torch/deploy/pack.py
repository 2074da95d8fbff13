"""A trained model as a folder to give away or upload: weights, model card, hubconf.py, config.json and checksums."""

from pathlib import Path

from flowers_torch import __version__
from flowers_torch.deploy.hub import flowers_classifier
from flowers_torch.deploy.timm_form import to_timm
from flowers_torch.errors import DataError, UsageError, printable
from flowers_torch.files.atomic import atomic_write, write_json, write_text
from flowers_torch.files.download import file_digest
from flowers_torch.files.tensors import safe_load
from flowers_torch.models.checkpoint import ModelInfo, load_classifier, save_classifier
from flowers_torch.report.provenance import model_card
from flowers_torch.report.run_summary import RunSummary, read_run
from flowers_torch.report.templating import render

MODEL, CARD, HUBCONF, CONFIG, SUMS = "model.safetensors", "README.md", "hubconf.py", "config.json", "SHA256SUMS"


def pack(model: Path, folder: Path) -> list[Path]:
    """Writes a new, empty or earlier packed folder, loads it once as a test, and returns its files.

    The weights have timm's names and there is a `config.json` for timm and transformers, where timm has a network that
    computes the same. The card of a weights file without its run folder states no numbers.

    Raises:
        UsageError: the folder holds other things.
        ModelFileError: the weights cannot be used.
    """
    weights = model / MODEL if model.is_dir() else model
    network, info = load_classifier(weights)
    try:
        run = read_run(model) if model.is_dir() else None
    except DataError as error:
        what = f"the card needs a finished run: {str(error).partition('; fix: ')[0]}"
        raise DataError(what, f"pack {weights.name} alone") from error
    timm_form = to_timm(network, info)
    names = [MODEL, CARD, HUBCONF, *([CONFIG] if timm_form else []), SUMS]
    if folder.exists() and (not folder.is_dir() or {path.name for path in folder.iterdir()} - {*names, CONFIG}):
        raise UsageError(f"{printable(folder)} holds other things", "name a new folder with --out")
    (folder / CONFIG).unlink(missing_ok=True)
    if timm_form and timm_form.info != info:
        info, best = timm_form.info, safe_load(weights)[1].get("best", {})
        save_classifier(timm_form.network.state_dict(), info, folder / MODEL, best=best)
    else:
        content = weights.read_bytes()
        with atomic_write(folder / MODEL, size=len(content)) as file:
            file.write(content)
    if timm_form:
        write_json(folder / CONFIG, timm_form.config())
    digest = file_digest(folder / MODEL)
    flowers_classifier(str(folder), sha256=digest)
    write_text(folder / CARD, card_text(info, digest, run, timm_form is not None))
    write_text(folder / HUBCONF, render("hubconf.py.jinja", {"digest": digest}, "flowers_torch.deploy"))
    write_text(folder / SUMS, "".join(f"{file_digest(folder / name)}  {name}\n" for name in names[:-1]))
    return [folder / name for name in names]


def card_text(info: ModelInfo, digest: str, run: RunSummary | None = None, for_timm: bool = False) -> str:
    """The model card as Markdown, as hubs show it; `for_timm` if timm and transformers load the folder, too."""
    values = {"card": model_card(info, run), "info": info, "digest": digest, "version": __version__}
    values["for_timm"] = for_timm
    return render("model_card.md.jinja", values, "flowers_torch.deploy")
