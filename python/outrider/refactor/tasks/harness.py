"""The canonical items as tasks of lm-evaluation-harness, and the comparison of its figures with the built-in ones."""

import json
from pathlib import Path

_HEAD = """\
task: outrider_{name}
dataset_path: json
dataset_kwargs:
  data_files:
    test: {file}
test_split: test
"""
_METRIC = """\
  - metric: {metric}
    aggregation: {aggregation}
    higher_is_better: {higher}
"""
_FORMS = {
    "choice": (
        "output_type: multiple_choice\ndoc_to_text: context\ndoc_to_choice: choices\ndoc_to_target: gold\n"
        'target_delimiter: " "\n',
        ("acc", "acc_norm", "acc_bytes"),
    ),
    "partial": (
        "output_type: multiple_choice\ndoc_to_text: gold\ndoc_to_choice: contexts\ndoc_to_target: continuation\n"
        'target_delimiter: " "\n',
        ("acc",),
    ),
    "cloze": (
        "output_type: loglikelihood\ndoc_to_text: context\ndoc_to_target: \"{{' ' + target}}\"\n",
        ("acc", "perplexity"),
    ),
}


def task_yaml(name: str, kind: str, file: Path) -> str:
    """The YAML of one task; run it with `lm_eval --include_path FOLDER --tasks outrider_<name>`."""
    form, metrics = _FORMS[kind]
    text = _HEAD.format(name=name, file=json.dumps(str(file))) + form + "metric_list:\n"
    for metric in metrics:
        perplexity = metric == "perplexity"
        aggregation, higher = ("perplexity", "false") if perplexity else ("mean", "true")
        text += _METRIC.format(metric=metric, aggregation=aggregation, higher=higher)
    return text + "metadata:\n  version: 1.0\n"


def compare(ours: dict[str, dict[str, float]], harness: dict[str, float]) -> list[dict[str, float | str]]:
    """Rows of metric, both values, and how far apart they are: points for accuracies, percent for perplexities.

    `ours` is `TaskScores.summary()`, `harness` the task's `results` entry, whose keys are `<metric>,<filter>`.
    """
    rows: list[dict[str, float | str]] = []
    theirs = {key.split(",")[0]: value for key, value in harness.items() if isinstance(value, int | float)}
    for metric in ours.keys() & theirs.keys():
        value, other = ours[metric]["value"], theirs[metric]
        scale = 100 / other if metric == "perplexity" else 100
        rows.append({"metric": metric, "ours": value, "harness": other, "apart": abs(value - other) * scale})
    return sorted(rows, key=lambda row: str(row["metric"]))
