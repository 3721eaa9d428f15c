"""Perplexity of a causal language model: how well it predicts each token from those before."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from mfac.gradients.backward import LossFunction
from mfac.gradients.modes import model_mode
from mfac.layerwise.items import by_name, taken

_ENTRIES = 1 << 22  # logits whose log-softmax is held at once
_UNCOUNTED = -100  # a label that torch's and Hugging Face's losses pass over


def evaluate_perplexity(model: nn.Module, batches: Iterable[Any], loss_fn: LossFunction | None = None) -> float:
    r"""Perplexity of a causal language model over all predicted tokens of all batches.

    .. math:: \exp\Bigl(-\frac{1}{N} \sum_{s} \sum_{j > 1} \log p(x_{sj} | x_{s, <j})\Bigr)

    over sequences s and the N tokens that have one before them in their sequence. Each token weighs
    the same, whatever the sizes of the batches.

    Args:
        model: Returns logits [n, t, vocab] of the token after each; or a tuple whose first element
            they are, or a mapping or an object with `logits`. It is in evaluation mode meanwhile,
            and each of its modules in its own again afterwards.
        batches: A finite iterable of batches on the model's device. A batch is one of

            * token ids [n, t];
            * a mapping with `input_ids` [n, t], and perhaps `attention_mask` and `labels`, both
              [n, t]. The model is called with all but the labels, by name;
            * a tuple or list of ids, perhaps a mask, if that is the model's second parameter, and
              perhaps labels. The model is called with ids and mask.

            Labels are laid out as the ids: they are the ids themselves, or -100 for a token that
            does not count. A token counts if it and the one before have the same mask, which is not
            0.
        loss_fn: `loss_fn(model, batch)` returns the mean negative log likelihood of the tokens that
            count in a batch, a scalar; for models that are called in another way. The batches weigh
            by how many those are.

    Returns:
        The perplexity, at least 1: as many equally likely tokens would be as hard to guess. It is
        inf where the model excludes a token that comes.

    Raises:
        TypeError: If batches, a batch, ids, logits or the loss are of a wrong type.
        ValueError: If there is no batch or no token to predict. With the batch's number: if ids,
            mask, labels or logits have another shape, a label is another token, an id is none of
            the vocabulary, or a likelihood is NaN.

    Time is that of a forward pass a batch, and of a log-softmax. Beside the model's own memory and
    its logits, 32 MB are taken for chunks of float32 logits, whatever the batch.

    Example:
        >>> import torch, mfac
        >>> model = torch.nn.Sequential(torch.nn.Embedding(50, 8), torch.nn.Linear(8, 50, bias=False))
        >>> _ = torch.nn.init.zeros_(model[1].weight)  # every token is as likely
        >>> round(mfac.evaluate_perplexity(model, [torch.arange(12).reshape(2, 6)]), 4)
        50.0
    """
    if isinstance(batches, Tensor | Mapping) or not isinstance(batches, Iterable):
        raise TypeError(f"Parameter `batches` should be an iterable of batches. Found {type(batches).__name__}.")
    total, predicted, number = 0.0, 0, -1
    with model_mode(model, "eval"), torch.no_grad():
        for number, batch in enumerate(batches):
            ids, counted = tokens_of(by_name(model, batch), number)
            count = int(counted.sum())
            if count == 0:
                continue
            if loss_fn is None:
                try:
                    output = _call(model, batch, ids)
                except IndexError as error:  # of a table of tokens or positions
                    raise ValueError(
                        f"Parameter `batches` should yield ids of the model's vocabulary, in sequences that it takes. "
                        f"Found {int(ids.min())} to {int(ids.max())} in sequences of {ids.shape[1]} in batch {number}, "
                        f"at which the model raises: {error}."
                    ) from error
                summed = _summed(logits_of(output, ids, number), ids, counted, number)
            else:
                summed = _scalar(loss_fn(model, batch)) * count
            if summed != summed:
                raise ValueError(f"Parameter `model` should predict every token. Found NaN in batch {number}.")
            total, predicted = total + summed, predicted + count
    if number < 0:
        raise ValueError(
            "Parameter `batches` should yield at least one batch. Found none. An iterator that was used up gives none."
        )
    if predicted == 0:
        raise ValueError(
            "Parameter `batches` should hold tokens to predict: sequences of two or more, neither masked nor labelled "
            f"-100. Found none in {number + 1} batches."
        )
    return float(torch.tensor(total / predicted, dtype=torch.float64).exp())  # inf where math.exp would raise


def tokens_of(batch: Any, number: int) -> tuple[Tensor, Tensor]:
    """Token ids of a batch, and which of them count.

    Args:
        batch: As for `evaluate_perplexity`.
        number: Of the batch, for messages.

    Returns:
        Ids [n, t], and which of their second to last count as predicted, [n, t - 1] bool.

    Raises:
        TypeError: If the batch or its ids are of a wrong type.
        ValueError: If a shape is another, or a label is another token.
    """
    mask = labels = None
    if isinstance(batch, Mapping):
        ids, mask, labels = (batch.get(key) for key in ("input_ids", "attention_mask", "labels"))
    elif isinstance(batch, tuple | list) and 1 <= len(batch) <= 2:
        ids, labels = batch[0], batch[1] if len(batch) == 2 else None
    else:
        ids = batch
    if not isinstance(ids, Tensor):
        found = f"keys {list(batch)}" if isinstance(batch, Mapping) and ids is None else type(ids).__name__
        raise TypeError(
            "Parameter `batches` should yield token ids, a mapping with `input_ids`, or a tuple of ids and perhaps "
            f"labels. Found {found} in batch {number}."
        )
    if ids.is_floating_point() or ids.is_complex() or ids.dtype == torch.bool:
        raise TypeError(f"Parameter `batches` should yield integer token ids. Found {ids.dtype} in batch {number}.")
    if ids.dim() != 2:
        raise ValueError(
            f"Parameter `batches` should yield token ids of shape [n, t]. Found shape {list(ids.shape)} in batch "
            f"{number}."
        )
    counted = torch.ones_like(ids[:, 1:], dtype=torch.bool)
    if mask is not None:
        _check_layout("attention_mask", mask, ids, number)
        counted &= (mask[:, 1:] != 0) & (mask[:, 1:] == mask[:, :-1])
    if labels is not None:
        _check_layout("labels", labels, ids, number)
        if bool(((labels != ids) & (labels != _UNCOUNTED)).any()):
            raise ValueError(
                f"Parameter `batches` should yield labels that are the ids at their own places, not shifted, or -100. "
                f"Found others in batch {number}."
            )
        counted &= labels[:, 1:] != _UNCOUNTED
    return ids, counted


def _check_layout(name: str, tensor: Any, ids: Tensor, number: int) -> None:
    if not isinstance(tensor, Tensor):
        raise TypeError(
            f"Parameter `batches` should yield `{name}` as a tensor. Found {type(tensor).__name__} in batch {number}."
        )
    if tensor.shape != ids.shape:
        raise ValueError(
            f"Parameter `batches` should yield `{name}` of the ids' shape {list(ids.shape)}. Found shape "
            f"{list(tensor.shape)} in batch {number}."
        )


def _call(model: nn.Module, batch: Any, ids: Tensor) -> Any:
    """The model's output; without the labels, which would make it compute a loss too."""
    if isinstance(batch, Mapping):
        return model(**{key: value for key, value in batch.items() if key != "labels"})
    return model(*taken(model, batch)) if isinstance(batch, tuple | list) else model(ids)


def logits_of(output: Any, ids: Tensor, number: int) -> Tensor:
    """The logits in whatever a model returned.

    Args:
        output: Logits, a tuple that begins with them, or a mapping or an object with `logits`.
        ids: [n, t].
        number: Of the batch, for messages.

    Returns:
        [n, t, vocab].

    Raises:
        TypeError: If there are none.
        ValueError: If their shape is another.
    """
    if isinstance(output, Mapping):
        output = output.get("logits")
    elif isinstance(output, tuple | list) and not hasattr(output, "logits"):
        output = output[0] if output else None
    elif not isinstance(output, Tensor):
        output = getattr(output, "logits", output)
    if not isinstance(output, Tensor) or not output.is_floating_point():
        found = output.dtype if isinstance(output, Tensor) else type(output).__name__
        raise TypeError(f"Parameter `model` should return floating-point logits. Found {found} in batch {number}.")
    if output.dim() != 3 or output.shape[:2] != ids.shape or output.shape[2] == 0:
        raise ValueError(
            f"Parameter `model` should return logits of shape [{ids.shape[0]}, {ids.shape[1]}, vocab]. Found shape "
            f"{list(output.shape)} in batch {number}."
        )
    return output


def _summed(logits: Tensor, ids: Tensor, counted: Tensor, number: int) -> float:
    """Negative log likelihood of the tokens that count, summed in float64."""
    sequence, place = counted.to(logits.device).nonzero(as_tuple=True)
    targets = ids.to(logits.device)[sequence, place + 1].long()
    vocabulary = logits.shape[2]
    least, most = (int(bound) for bound in targets.aminmax())
    if least < 0 or most >= vocabulary:
        raise ValueError(
            f"Parameter `batches` should yield token ids of 0 to {vocabulary - 1}, as the model's logits have them. "
            f"Found {least} to {most} in batch {number}."
        )
    total = torch.zeros((), dtype=torch.float64)
    rows = max(1, _ENTRIES // vocabulary)
    for begin in range(0, len(targets), rows):
        chunk = slice(begin, begin + rows)
        part = logits[sequence[chunk], place[chunk]]  # [rows, vocab]
        part = part if part.dtype == torch.float64 else part.float()
        total += functional.cross_entropy(part, targets[chunk], reduction="none").cpu().double().sum()
    return float(total)


def _scalar(loss: Any) -> float:
    if isinstance(loss, Tensor) and loss.numel() != 1:
        raise ValueError(f"Parameter `loss_fn` should return a scalar. Found shape {list(loss.shape)}.")
    if not isinstance(loss, Tensor | float):
        raise TypeError(f"Parameter `loss_fn` should return a scalar tensor. Found {type(loss).__name__}.")
    return float(loss)
