"""`PerSignature`: different rows for each signature of a model."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from keras_warmup.errors import OptionsError


@dataclasses.dataclass(frozen=True)
class PerSignature:
    """Different rows for each signature, for models whose endpoints take different inputs.

    A signature without an entry takes the rows captured in `fit`, else made-up ones. A twin of a
    signature with an entry (`serve` beside `serving_default`) takes the same rows.

    Args:
        data: signature_key -> rows, as `data=` of `export_with_warmup` takes them.

    Raises:
        OptionsError: it is not a mapping of signature keys, or is empty.

    Example:
    ```python
    keras_warmup.save(
        towers,
        "./towers/{version}",
        signatures={"query": towers.query, "candidate": towers.candidate},
        data=keras_warmup.PerSignature({"query": queries, "candidate": candidates}),
    )
    ```
    """

    data: Mapping[str, Any]

    def __post_init__(self) -> None:
        if not isinstance(self.data, Mapping) or not self.data:
            raise OptionsError(
                "PerSignature takes a mapping of signature_key to data with at least one entry, "
                f"got {type(self.data).__name__}."
            )
        wrong = [key for key in self.data if not isinstance(key, str)]
        if wrong:
            raise OptionsError(f"PerSignature: signature keys must be str, got {wrong!r}.")
