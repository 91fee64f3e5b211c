"""A direction from a sparse autoencoder: one row of its decoder, read from safetensors."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

import torch
from jaxtyping import Float
from safetensors import SafetensorError, safe_open
from torch import Tensor

from ss_lens.activations.activations import Activations
from ss_lens.calibration.candidates import Candidates, mean_difference
from ss_lens.core.errors import NotApplicable, UserError
from ss_lens.models.identity import last_part
from ss_lens.models.sites import Site


@dataclass(frozen=True)
class Dictionary:
    """A feature of a sparse autoencoder: its decoder row, at the one site it was trained on.

    SAELens itself cannot be installed beside TransformerLens 4: it requires a version below 4
    (6.54.12 does). So the decoder is read from the weights that it saves (:func:`read_decoder`).
    All other sites are excluded. As with every method the direction points to the positive class: a
    feature of the negative one is turned round.

    Attributes:
        path: the ``.safetensors`` file.
        site: where the autoencoder was trained, written like ``L12.resid_post``.
        feature: which row; ``None`` is the one with the largest cosine to the difference of the
            class means (:meth:`resolved` says which that is).
    """

    path: str | Path
    site: str
    feature: int | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "path", str(self.path))
        Site.parse(self.site)

    def resolved(self, acts: Activations) -> Dictionary:
        """The same with its feature named; raises as :meth:`candidates` does."""
        if self.feature is not None:
            return self
        index, difference = self._place_in(acts)
        decoder = read_decoder(self.path, difference.shape[1])
        return replace(self, feature=nearest_feature(decoder, difference[index]))

    def published(self) -> Dictionary:
        """The same with its file named without its folder."""
        return replace(self, path=last_part(str(self.path)))

    def candidates(self, acts: Activations) -> Candidates:
        """Raises a :class:`UserError` for a site not captured, or one where the class means agree;
        for a file that is absent or not a decoder of this width; for a feature that is not in it.
        """
        index, difference = self._place_in(acts)
        decoder, feature = read_decoder(self.path, difference.shape[1]), self.feature
        if feature is None:
            feature = nearest_feature(decoder, difference[index])
        rows = torch.zeros_like(difference)
        rows[index] = feature_row(decoder, feature)
        only = torch.arange(len(rows)) == index
        return Candidates.from_rows(rows, difference, only, acts.sites, self)

    def _place_in(self, acts: Activations) -> tuple[int, Float[Tensor, "site d_model"]]:
        """Which row the dictionary's site is, and the difference of the class means at each."""
        site = Site.parse(self.site)
        if site not in acts.sites:
            raise UserError(
                f"the dictionary is of {site}, which is not among the sites to calibrate "
                f"({acts.sites[0]} … {acts.sites[-1]}). Capture that stream and layer, and say "
                f"calibrate(..., streams=({site.stream!r},))."
            )
        index = acts.sites.index(site)
        difference, valid = mean_difference(acts)
        if not valid[index]:
            raise NotApplicable(
                f"the class means agree at {site}, so no feature there has a sign; use a "
                "dictionary of another site."
            )
        return index, difference


def read_decoder(path: Path | str, d_model: int) -> Float[Tensor, "feature d_model"]:
    """One row per feature: what the feature writes into the activation, in float32.

    Read are ``W_dec`` (``[d_sae, d_model]``, as SAELens writes it) or ``decoder.weight`` (the
    ``[d_model, d_sae]`` of a linear layer). Nothing in the file is executed.

    Raises:
        UserError: no such file, not safetensors, neither key, another width, or numbers that are
            not finite.
    """
    path = Path(path)
    if not path.is_file():
        raise UserError(
            f"there is no dictionary file {path}; give the .safetensors file of a sparse "
            "autoencoder (SAELens calls it sae_weights.safetensors)."
        )
    try:
        with safe_open(path, framework="pt") as file:
            keys = list(file.keys())
            if "W_dec" in keys:
                decoder = file.get_tensor("W_dec")
            elif "decoder.weight" in keys:
                decoder = file.get_tensor("decoder.weight").transpose(0, -1)
            else:
                raise UserError(
                    f"the dictionary file {path} has neither 'W_dec' nor 'decoder.weight'; it has "
                    f"{', '.join(sorted(keys)) or 'no tensor'}. Rename its decoder to 'W_dec' "
                    "([features, width])."
                )
    except SafetensorError as error:
        raise UserError(
            f"the dictionary file {path} is not a whole safetensors file ({error}); fetch it again."
        ) from error
    if decoder.ndim != 2 or decoder.shape[1] != d_model:
        raise UserError(
            f"the decoder in {path} has shape {tuple(decoder.shape)}; expected [features, "
            f"{d_model}], the width of the activations. It was trained on another model, or its "
            "axes are swapped."
        )
    decoder = decoder.float()
    if not decoder.isfinite().all():
        raise UserError(f"the decoder in {path} holds NaN or infinity; fetch it again.")
    return decoder


def feature_row(
    decoder: Float[Tensor, "feature d_model"], feature: int
) -> Float[Tensor, "d_model"]:
    """The decoder row of one feature.

    Raises:
        UserError: there is no such feature, or its row is zero.
    """
    if not 0 <= feature < len(decoder):
        raise UserError(
            f"feature {feature} is out of range for the dictionary of {len(decoder)} features; "
            f"valid: 0–{len(decoder) - 1}."
        )
    row = decoder[feature]
    if not row.any():
        raise UserError(
            f"feature {feature} of the dictionary has a zero decoder row; name another."
        )
    return row


def nearest_feature(
    decoder: Float[Tensor, "feature d_model"], direction: Float[Tensor, "d_model"]
) -> int:
    """The feature whose decoder row has the largest (signed) cosine to ``direction``.

    Raises:
        UserError: no row points to the same side as ``direction``.
    """
    length = decoder.norm(dim=-1)
    along = decoder @ direction.float()
    # A zero row is a dead feature, which has no cosine.
    cosine = torch.where(length > 0, along / length, -torch.inf)
    if not cosine.max() > 0:
        raise NotApplicable(
            f"none of the {len(decoder)} features of the dictionary points along the difference of "
            "the class means; name a feature=, or use DifferenceOfMeans()."
        )
    return int(cosine.argmax())
