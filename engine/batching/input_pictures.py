"""Pictures of a recipe as they come from outside: found among the blobs, and prepared for the networks."""

from __future__ import annotations

from collections.abc import Mapping

from engine.contract import Recipe
from engine.contract.rejection import JobRejected
from engine.models.family import Family, TakesPictures, with_autoencoder
from engine.models.pictures.picture_conditions import PictureConditions
from engine.picture_files import open_image


def check_pictures(recipe: Recipe, family: Family) -> None:
    """Raise `JobRejected` where the family cannot take the recipe's control and reference pictures."""
    if not isinstance(family, TakesPictures):
        if recipe.controls or recipe.references:
            raise JobRejected(f"{family.name} takes no control or reference pictures.", "model")
        return
    if family.needs_pictures(recipe) and recipe.tile:
        raise JobRejected("A tile takes no control, reference or inpainted pictures.", "member")
    if any(control.start >= control.stop for control in recipe.controls):
        raise JobRejected("A control picture cannot stop before it starts.", "member")
    family.check_pictures(recipe)


def load_pictures(recipe: Recipe, blobs: Mapping[str, bytes], family: Family) -> PictureConditions:
    """Return the pictures beside the prompt, as the family's networks take them; () where there are none.

    `blobs`: the recipe's `required_blobs`, by SHA-256. It runs networks, so call it only in the decode worker's thread.
    Raises `JobRejected`.
    """
    family = with_autoencoder(family, recipe)
    check_pictures(recipe, family)
    if not isinstance(family, TakesPictures) or not family.needs_pictures(recipe):
        return ()
    return family.prepare_pictures(recipe, lambda sha256: open_image(get_blob(blobs, sha256, "picture"), "picture"))


def get_blob(blobs: Mapping[str, bytes], sha256: str, subject: str = "init image or keyframe") -> bytes:
    try:
        return blobs[sha256]
    except KeyError as error:
        raise JobRejected(f"The {subject} of this picture is no longer stored.", "us") from error
