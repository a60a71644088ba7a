"""`BoundSignature`: a signature with rows bound to its inputs."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

from keras_warmup.binding.bind import BoundBatch
from keras_warmup.report import RequestKind
from keras_warmup.savedmodel.graph import GraphFacts
from keras_warmup.savedmodel.signatures import Signature


@dataclasses.dataclass(frozen=True)
class BoundSignature:
    """A signature with rows bound to its inputs, and what the planner must know of it.

    Attributes:
        signature: the signature.
        facts: what its graph does.
        batches: rows bound to its inputs; at least one batch.
        kinds: request kinds to write for it, the preferred one first; empty where it is only a
            task of a MultiInference.
        task: kind of its MultiInference task; `None` where it has none.
        can_predict: whether a Predict request, and so an output filter, can reach it.
    """

    signature: Signature
    facts: GraphFacts
    batches: Sequence[BoundBatch]
    kinds: Sequence[RequestKind] = ("predict",)
    task: RequestKind | None = None
    can_predict: bool = True

    @property
    def key(self) -> str:
        """Key of the signature."""
        return self.signature.key
