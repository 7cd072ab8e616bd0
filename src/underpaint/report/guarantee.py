"""What the report says about differential privacy: the figures of each private stage, in words.

All figures come from the stage's own records; nothing is computed anew.
"""

from typing import Any

from underpaint import config
from underpaint.evaluation.records import Record, of_kind

ACCOUNTANTS = {
    "prv": "PRV (privacy loss random variables, an upper bound)",
    "rdp": "RDP (Rényi divergences, an upper bound)",
}


def private_stages(records: list[Record], run: config.Run) -> list[dict[str, Any]]:
    """The private stages of `run` that have begun: name, epsilon spent, whether finished, rows."""
    latest = {r["stage"]: r for r in of_kind(records, "stage") if "privacy" in r}
    stages = []
    for name, record in latest.items():
        privacy, finished = record["privacy"], record["event"] == "end"
        steps = [r for r in of_kind(records, "step") if r["stage"] == name]
        spent, done = privacy["spent"], privacy["spent_steps"]
        if steps and not finished:
            spent, done = steps[-1]["epsilon"], steps[-1]["spent_steps"]
        recipe = run.stages.get(name)
        budget = f" of {recipe.dp.epsilon:g}" if recipe and recipe.dp else ""
        rows = [
            ("epsilon spent", f"{spent:.4g}{budget}"),
            ("delta", f"{privacy['delta']:g}"),
            ("noise multiplier", f"{privacy['noise_multiplier']:.4g}"),
            ("sampling rate of an image", f"{privacy['sampling_rate']:.4g}"),
            ("steps", f"{done:,} of {privacy['steps']:,}"),
            ("clip of an image's gradient", f"{privacy['clip']:g}"),
            ("draws in an image's gradient", f"{privacy['multiplicity']}"),
            ("accountant", ACCOUNTANTS.get(privacy["accountant"], privacy["accountant"])),
        ]
        stages.append({"name": name, "spent": spent, "finished": finished, "rows": rows})
    return stages
