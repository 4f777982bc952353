"""One task on one model: batches through the processor or tokenizer, through the model, and counted.

Knows neither files of results nor tables. A model is scored in the dtype it is stored in; on the CPU, where half
precision is slow, in float32.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor

from dopkit import loading
from dopkit.errors import EvaluationError, Problem
from dopkit.evaluation import perplexity, zero_shot
from dopkit.evaluation.data import Samples
from dopkit.evaluation.reading import Reading
from dopkit.evaluation.targets import Target
from dopkit.progress import Progress
from dopkit.skeleton.construct import first_line

Score = dict[str, Any]  # value, samples, seconds; perplexity has tokens as well


class Scorer:
    """Scores tasks on one device; keeps the model it used last, and what was read of each task's prompts."""

    def __init__(self, device: torch.device, progress: Progress) -> None:
        self.device = device
        self.progress = progress
        self._held: tuple[Any, Any] = (None, None)  # what was loaded, and the model
        self._prompted: dict[str, zero_shot.Prompted] = {}

    @torch.inference_mode()
    def score(self, samples: Samples, target: Target, reading: Reading) -> Score:
        """Raises CheckpointError when the model cannot be loaded, EvaluationError when data cannot be read or does not
        go with the model.
        """
        self.progress.begin_scoring(f"{target.label}: {samples.task.name}", samples.rows)
        model = self._model(target, reading)
        started = time.perf_counter()
        try:
            found = self._found(samples, model, reading)
        except (ValueError, IndexError, RuntimeError) as error:  # what models and processors raise for what is no input
            remedy = "Do its tokenizer or image processor go with the model? Is there memory for the task's batch_size?"
            problem = Problem("", first_line(error), remedy)
            raise EvaluationError(f"{samples.task.name}: {target.label} cannot be scored", [problem]) from error
        return {**found, "samples": samples.rows, "seconds": round(time.perf_counter() - started, 3)}

    def _found(self, samples: Samples, model: Any, reading: Reading) -> Score:
        if reading.kind == "language":
            return self._perplexity(samples, model, reading)
        logits = self._texts if samples.task.kind == "text-classification" else self._images
        return {"value": self._accuracy(samples, reading, logits(samples, model, reading))}

    def _model(self, target: Target, reading: Reading) -> Any:
        key = (target.backbone, target.heads, reading.head)
        if self._held[0] != key:
            self._held = (None, None)  # let go of one before the next is loaded
            if reading.head is None:
                model = loading.load(target.backbone)
            else:
                model = loading.load(target.heads, reading.head, backbone=target.backbone)
            if self.device.type == "cpu":
                model = model.float()
            self._held = (key, model.to(self.device))
        return self._held[1]

    def _accuracy(self, samples: Samples, reading: Reading, logits: Iterator[Tensor]) -> float:
        """The share of rows whose largest logit is the label's."""
        labels = torch.tensor(samples.labels(reading.classes))
        right = at = 0
        for batch in logits:  # [rows, classes]
            guesses = batch.argmax(dim=-1).cpu()
            right += int((guesses == labels[at : at + len(guesses)]).sum())
            at += len(guesses)
            self.progress.scored(len(guesses))
        return right / at

    def _images(self, samples: Samples, model: Any, reading: Reading) -> Iterator[Tensor]:
        processor = loading.image_processor(reading.prepared_in)
        answer = self._answer(samples, model, reading)
        for images in samples.images(samples.task.batch_size):
            prepared = processor(images=images, return_tensors="pt", input_data_format="channels_last")
            yield answer(prepared["pixel_values"].to(self.device, model.dtype))

    def _answer(self, samples: Samples, model: Any, reading: Reading) -> Callable[[Tensor], Tensor]:
        task = samples.task
        if reading.base is None or task.zero_shot is None:
            return lambda pixel_values: model(pixel_values=pixel_values).logits
        if task.name not in self._prompted:
            self._prompted[task.name] = zero_shot.read_prompts(reading.base, task.zero_shot, self.device)
        return zero_shot.nearness(model, self._prompted[task.name])

    def _texts(self, samples: Samples, model: Any, reading: Reading) -> Iterator[Tensor]:
        tokenizer = loading.tokenizer(reading.prepared_in)
        # Texts of different lengths make a batch with padding alone, and only if the model takes it for padding:
        # a decoder reads its answer at the last token that is none.
        own = getattr(model.config.get_text_config(), "pad_token_id", None)
        alone = tokenizer.pad_token_id is None or tokenizer.pad_token_id != own
        longest = min(samples.task.max_length or _ENDLESS, tokenizer.model_max_length, _limit(model) or _ENDLESS)
        how = {"truncation": True, "max_length": longest} if longest < _ENDLESS else {}
        for texts in samples.texts(1 if alone else samples.task.batch_size):
            tokens = tokenizer(texts, padding=not alone, return_tensors="pt", **how)
            yield model(**tokens.to(self.device)).logits

    def _perplexity(self, samples: Samples, model: Any, reading: Reading) -> Score:
        tokenizer = loading.tokenizer(reading.prepared_in)
        text = perplexity.SEPARATOR.join(row for rows in samples.texts(samples.task.batch_size) for row in rows)
        # verbose: the text is longer than the model reads, which is what the windows are for
        ids = tokenizer(text, return_tensors="pt", verbose=False)["input_ids"][0]
        if len(ids) < 2:
            raise EvaluationError(f"{samples.task.name}: the text has {len(ids)} tokens; perplexity needs at least 2")
        length = perplexity.window_length(_limit(model), samples.task.max_length)
        found = list(perplexity.windows(len(ids), length))
        total, shown = 0.0, 0
        for batch in perplexity.batches(found, samples.task.batch_size):
            total += perplexity.negative_log_likelihood(model, ids, batch)
            done = samples.rows * batch[-1][1] // len(ids)  # as rows, which the display counts
            self.progress.scored(done - shown)
            shown = done
        mean = total / (len(ids) - 1)
        if not mean < _MOST_NATS:  # or it is no number
            what = f"the model's loss is {mean:g}: it is broken, or not for this text"
            raise EvaluationError(f"{samples.task.name}: {what}")
        return {"value": math.exp(mean), "tokens": len(ids) - 1}


_MOST_NATS = 700.0  # of which exp is still a float
_ENDLESS = 1 << 30  # a tokenizer that knows no limit has a larger one


def _limit(model: Any) -> int | None:
    """How many tokens the model reads at once, where its config says so."""
    limit = getattr(model.config.get_text_config(), "max_position_embeddings", None)
    return limit if isinstance(limit, int) and limit > 0 else None
