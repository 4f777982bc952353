"""Make a file for `merge_method: fisher`: how much each weight of a model matters to what it predicts.

    python docs/examples/fisher.py user/model texts.jsonl -o model-fisher.safetensors

The data are JSON lines with a `text`, for a language model, or with a `text` and a `label` (a number), for a
classifier. Take some hundreds of lines of what the model was trained for.

What is written is the diagonal of the Fisher information, the mean over the data of the squared gradient of the log
likelihood, one example at a time. By default the labels are drawn from the model's own predictions, as the definition
says; `--labels data` takes those of the data (the empirical Fisher). It takes the memory of three copies of the model
in float32. For anything but text, call `fisher` with inputs of your own:

    save_file(fisher(model, ({"pixel_values": one, "labels": two} for ...)), "fisher.safetensors")
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterable, Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor
from torch.nn.functional import cross_entropy


def fisher(
    model: torch.nn.Module, examples: Iterable[dict[str, Tensor]], draws: torch.Generator | None = None
) -> dict[str, Tensor]:
    """The mean of the squared gradients of the log likelihood, float32, for every parameter of ``model``.

    Each of ``examples`` holds what the model takes, for one example, with ``labels`` where they are not its own input.
    With ``draws`` the labels are drawn from the model's predictions instead.
    """
    model.eval().requires_grad_(True)
    sums = {name: torch.zeros_like(parameter, dtype=torch.float32) for name, parameter in model.named_parameters()}
    number = 0
    for example in examples:
        number += 1
        model.zero_grad(set_to_none=True)
        negative_log_likelihood(model, example, draws).backward()
        for name, parameter in model.named_parameters():
            if parameter.grad is not None:  # a part that these examples do not use
                sums[name] += parameter.grad.float().square_()
    model.zero_grad(set_to_none=True)
    if not number:
        raise ValueError("there are no examples")
    return {name: total.div_(number).cpu() for name, total in sums.items()}


def negative_log_likelihood(
    model: torch.nn.Module, example: dict[str, Tensor], draws: torch.Generator | None = None
) -> Tensor:
    """Of one example's label, or of all tokens of a text but the first, each given those before it."""
    inputs = {name: tensor for name, tensor in example.items() if name != "labels"}
    logits = model(**inputs).logits.float()
    labels = example.get("labels")
    if logits.dim() == 3:  # a prediction at every token, of the next one
        logits, labels = logits[:, :-1], example["input_ids"][:, 1:]
    logits = logits.flatten(0, -2)
    if draws is not None:
        labels = torch.multinomial(logits.detach().softmax(-1), 1, generator=draws)
    if labels is None:
        raise ValueError("an example has no label")
    return cross_entropy(logits, labels.flatten(), reduction="sum")


def read_examples(path: Path, tokenizer: Any, most_tokens: int, device: str) -> Iterator[dict[str, Tensor]]:
    """The examples of a file of JSON lines, as what a model takes."""
    for line in path.read_text(encoding="utf-8").splitlines():
        entry = json.loads(line)
        example = dict(tokenizer(entry["text"], return_tensors="pt", truncation=True, max_length=most_tokens))
        if "label" in entry:
            example["labels"] = torch.tensor([entry["label"]])
        yield {name: tensor.to(device) for name, tensor in example.items()}


def load(name: str, labelled: bool) -> tuple[Any, Any]:
    """A model in float32 and its tokenizer."""
    from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, AutoTokenizer

    kind = AutoModelForSequenceClassification if labelled else AutoModelForCausalLM
    return kind.from_pretrained(name, dtype=torch.float32), AutoTokenizer.from_pretrained(name)


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description="Make a file for `merge_method: fisher`.")
    parser.add_argument("model", help="a folder or a repository of the Hub")
    parser.add_argument("data", type=Path, help="JSON lines with a text, and a label for a classifier")
    parser.add_argument("-o", "--out", type=Path, required=True, help="the safetensors file to write")
    parser.add_argument("--examples", type=int, default=1024, help="how many lines to take (1024)")
    parser.add_argument("--tokens", type=int, default=512, help="how many tokens of each (512)")
    parser.add_argument("--labels", choices=["model", "data"], default="model", help="whose labels count (model)")
    parser.add_argument("--seed", type=int, default=0, help="of the labels that are drawn (0)")
    parser.add_argument("--device", default="cpu")
    given = parser.parse_args(arguments)
    with given.data.open(encoding="utf-8") as stream:
        labelled = "label" in json.loads(stream.readline())
    model, tokenizer = load(given.model, labelled)
    examples = islice(read_examples(given.data, tokenizer, given.tokens, given.device), given.examples)
    draws = torch.Generator(given.device).manual_seed(given.seed) if given.labels == "model" else None
    found = fisher(model.to(given.device), examples, draws)
    save_file(found, given.out, metadata={"fisher": f"{given.model}, labels of the {given.labels}"})
    print(f"{given.out}: {len(found)} tensors")


if __name__ == "__main__":
    main()
