"""Noise: the same draws as diffusers, addressed by position and mixed along a variation's lineage."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from engine.batching.model_inputs import Noise, slerp
from engine.contract import NoiseAncestor, Recipe
from engine.sampling import plan

SHAPE = (4, 8, 8)
CONFIG = {"beta_schedule": "scaled_linear", "timestep_spacing": "trailing", "prediction_type": "epsilon"}
Recipes = Callable[..., Recipe]


def test_noise_comes_from_a_generator_seeded_with_seed_plus_image(recipe: Recipes) -> None:
    noise = Noise(recipe(seed=40), 2, SHAPE)
    table = plan(CONFIG, "ddpm", 10)
    generator = torch.Generator().manual_seed(42)
    assert torch.equal(noise.initial_noise(), torch.randn(SHAPE, generator=generator))
    for k in range(9):
        assert torch.equal(noise.row_noise(k, table), torch.randn(SHAPE, generator=generator))


@pytest.mark.parametrize("lineage", [(), (NoiseAncestor(3, 1, 0.3), NoiseAncestor(9, 0, 0.6))])
def test_a_draw_depends_only_on_its_position(recipe: Recipes, lineage: tuple[NoiseAncestor, ...]) -> None:
    table = plan(CONFIG, "ddpm", 10)
    in_order, at_once = (Noise(recipe(lineage=lineage), 0, SHAPE) for _ in range(2))
    draws = [in_order.initial_noise(), *(in_order.row_noise(k, table) for k in range(9))]
    assert torch.equal(at_once.row_noise(6, table), draws[7])  # forward
    assert torch.equal(at_once.row_noise(2, table), draws[3])  # and back
    assert torch.equal(at_once.initial_noise(), draws[0])


def test_a_variation_of_strength_zero_is_its_ancestor_and_of_one_is_independent(recipe: Recipes) -> None:
    ancestor = Noise(recipe(seed=5), 2, SHAPE)
    own_noise = Noise(recipe(seed=100), 0, SHAPE)
    same_noise, other = (Noise(recipe(seed=100, lineage=(NoiseAncestor(5, 2, s),)), 0, SHAPE) for s in (0.0, 1.0))
    torch.testing.assert_close(same_noise.initial_noise(), ancestor.initial_noise())
    torch.testing.assert_close(other.initial_noise(), own_noise.initial_noise())


def test_a_weak_variation_stays_close_to_its_ancestor_at_every_draw(recipe: Recipes) -> None:
    table = plan(CONFIG, "ddpm", 10)
    ancestor = Noise(recipe(seed=5), 0, SHAPE)
    near_noise = Noise(recipe(seed=100, lineage=(NoiseAncestor(5, 0, 0.1),)), 0, SHAPE)
    far_noise = Noise(recipe(seed=100, lineage=(NoiseAncestor(5, 0, 0.5),)), 0, SHAPE)
    for k in (0, 4, 8):
        reference = ancestor.row_noise(k, table)
        assert cosine(reference, near_noise.row_noise(k, table)) > 0.97
        assert 0.5 < cosine(reference, far_noise.row_noise(k, table)) < 0.9


def test_variations_of_variations_mix_noise_in_order(recipe: Recipes) -> None:
    parents = (NoiseAncestor(1, 0, 0.4), NoiseAncestor(2, 1, 0.2))
    child = Noise(recipe(seed=3, lineage=parents), 0, SHAPE).initial_noise()
    a, b, c = (torch.randn(SHAPE, generator=torch.Generator().manual_seed(seed)) for seed in (1, 3, 3))
    assert torch.equal(child, slerp(slerp(a, b, 0.4), c, 0.2))


def test_slerp_keeps_the_norm_and_maps_equal_noise_to_itself() -> None:
    a, b = (torch.randn(4000, generator=torch.Generator().manual_seed(seed)) for seed in (1, 2))
    for strength in (0.1, 0.5, 0.9):
        assert float(slerp(a, b, strength).std()) == pytest.approx(1.0, abs=0.05)
    assert torch.equal(slerp(a, a, 0.5), a)


def cosine(a: torch.Tensor, b: torch.Tensor) -> float:
    return float(torch.nn.functional.cosine_similarity(a.flatten(), b.flatten(), dim=0))
