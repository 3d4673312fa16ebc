"""The wire contract: every valid value survives the wire, and nothing else gets in or crashes."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import msgspec
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from msgspec import inspect

from engine import contract
from engine.contract import (
    BillingKey,
    Concept,
    Frame,
    Job,
    MalformedMessage,
    ModelProfile,
    Recipe,
    Result,
    UpscaleTask,
    count_rows,
    decode,
    encode,
    estimate_cost,
)

KINDS = [
    contract.Recipe,
    contract.UpscaleTask,
    contract.Job,
    contract.Frame,
    contract.PictureReady,
    contract.JobStarted,
    contract.JobFinished,
    contract.JobFailed,
    contract.JobCancelled,
    contract.JobHandedBack,
    contract.Ladder,
    contract.Snapshot,
    contract.Presence,
    contract.EmbedRequest,
    contract.EmbedReply,
    contract.DescribeRequest,
    contract.DescribeReply,
    contract.DecodeRequest,
    contract.DecodeReply,
]
ANY_KIND = st.sampled_from(KINDS)


def values_of(kind: Any) -> st.SearchStrategy[Any]:
    """A strategy for all values of the contract's type, from its own declaration, bounds included."""
    match kind:
        case inspect.StructType(cls=cls, fields=fields):
            return st.builds(cls, **{field.name: values_of(field.type) for field in fields})
        case inspect.UnionType(types=types):
            return st.one_of([values_of(each) for each in types])
        case inspect.LiteralType(values=literals):
            return st.sampled_from(list(literals))
        case inspect.VarTupleType(item_type=item, min_length=lower, max_length=upper):
            return st.lists(values_of(item), min_size=lower or 0, max_size=min(upper or 0, 3)).map(tuple)
        case inspect.TupleType(item_types=items):
            return st.tuples(*(values_of(item) for item in items))
        case inspect.StrType(pattern=str(pattern)):
            return st.from_regex(pattern, fullmatch=True, alphabet=st.characters(codec="ascii"))
        case inspect.StrType(min_length=lower, max_length=upper):
            return st.text(min_size=lower or 0, max_size=min(upper or 0, 50))
        case inspect.BytesType(min_length=lower, max_length=upper):
            return st.binary(min_size=lower or 0, max_size=min(upper or 0, 100))
        case inspect.IntType(ge=lower, le=upper, lt=exclusive_upper):
            return st.integers(lower, upper if upper is not None else (exclusive_upper or 0) - 1)
        case inspect.FloatType(ge=lower, gt=exclusive_lower, le=upper):
            return st.floats(
                lower if lower is not None else exclusive_lower, upper, exclude_min=exclusive_lower is not None
            )
        case inspect.BoolType():
            return st.booleans()
        case inspect.NoneType():
            return st.none()
    raise AssertionError(f"the contract has a type that this test doesn't know: {kind}")


def any_value(kind: type) -> st.SearchStrategy[Any]:
    return values_of(inspect.type_info(kind))


ANY_VALUE = ANY_KIND.flatmap(any_value)


@pytest.mark.slow
@given(ANY_VALUE)
@settings(max_examples=300, deadline=None)
def test_every_value_survives_the_wire(value: Any) -> None:
    assert decode(encode(value), type(value)) == value


@given(st.binary(max_size=300), ANY_KIND)
@example(b"\x80", contract.EmbedReply)  # an empty map
@settings(max_examples=300, deadline=None)
def test_garbage_is_malformed_and_nothing_else(payload: bytes, kind: type) -> None:
    """A map without one of the fields is no garbage for a kind whose fields all have defaults: it says nothing more."""
    try:
        value = decode(payload, kind)
    except MalformedMessage:
        return
    assert value == kind()


@pytest.mark.slow
@given(ANY_VALUE, st.data())
@settings(max_examples=300, deadline=None)
def test_a_damaged_value_is_malformed_or_still_within_its_bounds(value: Any, data: st.DataObject) -> None:
    payload = bytearray(encode(value))
    for _ in range(data.draw(st.integers(1, 4))):
        payload[data.draw(st.integers(0, len(payload) - 1))] = data.draw(st.integers(0, 255))
    try:
        decoded = decode(bytes(payload), type(value))
    except MalformedMessage:
        return
    assert decode(encode(decoded), type(value)) == decoded


def replace_each_float(builtins_value: Any, replacement: float) -> Iterator[Any]:
    """Yields one copy for every float in a nested plain value, with that float replaced."""
    if isinstance(builtins_value, float):
        yield replacement
    elif isinstance(builtins_value, dict):
        for key, inner in builtins_value.items():
            yield from ({**builtins_value, key: other} for other in replace_each_float(inner, replacement))
    elif isinstance(builtins_value, list):
        for index, inner in enumerate(builtins_value):
            yield from (
                [*builtins_value[:index], other, *builtins_value[index + 1 :]]
                for other in replace_each_float(inner, replacement)
            )


@pytest.mark.slow
@given(ANY_VALUE, st.sampled_from([math.nan, math.inf, -math.inf]))
@settings(max_examples=200, deadline=None)
def test_no_float_is_infinite_or_not_a_number(value: Any, invalid_float: float) -> None:
    for builtins_value in replace_each_float(msgspec.msgpack.decode(encode(value)), invalid_float):
        with pytest.raises(MalformedMessage):
            decode(msgspec.msgpack.encode(builtins_value), type(value))


def find_unbounded(kind: Any, path: str) -> Iterator[str]:
    """Yields the paths in a declaration where a string, list or number has no bound."""
    match kind:
        case inspect.StructType(cls=cls, fields=fields):
            if not kind.forbid_unknown_fields or not cls.__struct_config__.frozen:
                yield f"{path} is open or mutable"
            for field in fields:
                yield from find_unbounded(field.type, f"{path}.{field.name}")
        case inspect.UnionType(types=types):
            for each in types:
                yield from find_unbounded(each, path)
        case inspect.VarTupleType(item_type=item, max_length=upper):
            if upper is None:
                yield path
            yield from find_unbounded(item, f"{path}[]")
        case inspect.TupleType(item_types=items):
            for item in items:
                yield from find_unbounded(item, f"{path}[]")
        case inspect.StrType(pattern=pattern, max_length=upper) if pattern is None and upper is None:
            yield path
        case inspect.BytesType(max_length=None):
            yield path
        case inspect.IntType() | inspect.FloatType():
            if (kind.ge is None and kind.gt is None) or (kind.le is None and kind.lt is None):
                yield path


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__)
def test_every_string_list_and_number_is_bounded(kind: type) -> None:
    assert list(find_unbounded(inspect.type_info(kind), kind.__name__)) == []


def make_recipe(**changes: Any) -> Recipe:
    defaults: dict[str, Any] = {
        "concepts": (Concept("a cat"),),
        "model": "embedded",
        "sampler": "ddim",
        "steps": 10,
        "seed": 1,
        "guidance": 4.0,
        "width": 64,
        "height": 64,
        "dtype": "float32",
    }
    return Recipe(**{**defaults, **changes})


@pytest.mark.parametrize("ending", ["\n", "\r\n", " ", ".", "*", ">"])
def test_ids_cannot_smuggle_anything_into_a_subject(ending: str) -> None:
    """Python's `$` would accept a trailing newline."""
    frame = Frame(job="0" * 26 + ending, image=0, epoch=1, step=1, total_steps=2, picture=b"", seconds_left=0)
    with pytest.raises(MalformedMessage, match="job"):
        decode(encode(frame), Frame)
    with pytest.raises(MalformedMessage, match="source"):
        decode(encode(UpscaleTask(source="a" * 64 + ending)), UpscaleTask)
    if ending != ".":
        with pytest.raises(MalformedMessage, match="model"):
            decode(encode(make_recipe(model="m" + ending)), Recipe)


def test_messages_of_another_version_are_refused() -> None:
    builtins_value = msgspec.msgpack.decode(encode(make_recipe()))
    for changes in ({"v": contract.VERSION + 1}, {"v": 0}, {"lora": "x"}, {"type": "UpscaleTask"}):
        with pytest.raises(MalformedMessage):
            decode(msgspec.msgpack.encode({**builtins_value, **changes}), Recipe)


CONTROL = contract.ControlImage(name="canny", picture="a" * 64, scale=0.8, stop=0.5)
REFERENCE = contract.ReferenceImage(name="ip-adapter", picture="b" * 64)


def test_pictures_beside_the_prompt_are_blobs_that_the_worker_needs() -> None:
    assert make_recipe().required_blobs == ()
    both = make_recipe(controls=(CONTROL,), references=(REFERENCE,))
    assert both.required_blobs == ("a" * 64, "b" * 64)
    start = contract.ImageToImage((contract.InitImage("c" * 64),), 0.5, "d" * 64)
    assert msgspec.structs.replace(both, start=start).required_blobs == tuple(letter * 64 for letter in "cdab")
    branch = contract.Branch(ladder="e" * 64, step=3, has_new_noise=False)
    assert msgspec.structs.replace(both, start=branch).required_blobs == tuple(letter * 64 for letter in "eab")


CONTROL_FIELDS = (
    "quantization",
    "controls",
    "preprocessors",
    "references",
    "embeddings",
    "autoencoders",
    "max_clip_skip",
    "edits",
    "required",
)


def test_a_profile_from_before_control_offers_none_of_it() -> None:
    profile = msgspec.msgpack.decode(encode(make_warm()))
    for name in CONTROL_FIELDS:
        del profile[name]
    decoded = decode(msgspec.msgpack.encode(profile), ModelProfile)
    assert (decoded, decoded.controls, decoded.quantization) == (make_warm(), (), "none")


def test_control_and_reference_pictures_are_paid_by_their_share_of_a_row() -> None:
    step_ms = 8 * 10 * 2
    plain = make_recipe()
    controlled = make_recipe(controls=(CONTROL,))
    added = estimate_cost(controlled, make_warm()) - estimate_cost(plain, make_warm())
    assert added == pytest.approx(step_ms / 3 / 2 / 1000), "a third of a row, for half of the steps"
    adapter = msgspec.structs.replace(make_warm(), controls=(contract.ControlModel("canny", row_share=0.0),))
    assert estimate_cost(controlled, adapter) == pytest.approx(estimate_cost(plain, adapter))
    with_reference = estimate_cost(make_recipe(references=(REFERENCE,)), make_warm())
    assert with_reference - estimate_cost(plain, make_warm()) == pytest.approx((step_ms * 0.1 + 10) / 1000)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("a cat", ()),
        ("EasyNegative, (bad-hands:1.2)", ("easynegative", "bad-hands")),
        ("by <moebius> and <bad-hands-5>", ("moebius", "bad-hands-5")),
        ("moebius's moebius2 re-moebius <moebius2>", ("moebius",)),
        ("moebius.", ("moebius",)),
        ("bad-hands-5", ("bad-hands-5",)),
    ],
)
def test_embeddings_are_found_as_whole_words_or_in_brackets(text: str, expected: tuple[str, ...]) -> None:
    names = ("easynegative", "bad-hands", "bad-hands-5", "moebius")
    embeddings = [contract.ModelPart(name) for name in names]
    found = [part.name for part in contract.find_embeddings((text,), embeddings)]
    assert sorted(found) == sorted(expected)
    assert contract.find_embeddings((text,), ()) == ()


def test_candidates_are_paid_and_each_chosen_one_keeps_its_noise() -> None:
    best = make_recipe(count=2, candidate_count=4, chaos=1.0)
    assert (count_rows(best), count_rows(make_recipe(count=2))) == (8, 4)
    assert estimate_cost(best, make_warm()) == estimate_cost(make_recipe(count=4), make_warm())
    chosen = msgspec.structs.replace(best, chosen_candidates=(3, 1))
    assert estimate_cost(chosen, make_warm()) == estimate_cost(make_recipe(count=2), make_warm())
    assert [contract.noise_seed(chosen, image) for image in (0, 1)] == [4, 2]
    guidances = [contract.recipe_for_image(best, image).guidance for image in range(4)]
    assert [contract.recipe_for_image(chosen, image).guidance for image in (0, 1)] == [guidances[3], guidances[1]]


def test_a_message_of_another_version_says_which_side_to_update() -> None:
    owner = BillingKey(tier="a", guild="b", user="c")
    job = Job(id="0" * 26, task=make_recipe(), billing_key=owner, cost=1.0, deadline=2e9)
    fields = msgspec.msgpack.decode(encode(job))
    assert (fields["v"], fields["task"]["v"]) == (contract.VERSION, contract.VERSION), "also where defaults are omitted"
    later = contract.VERSION + 1
    earlier = contract.VERSION - 1
    for changes in ({"v": later, "hue": 1}, {"task": {"type": "Video", "v": later}}):
        with pytest.raises(contract.OtherVersion, match=f"its sender has version {later} .* update this program"):
            decode(msgspec.msgpack.encode({**fields, **changes}), Job)
    with pytest.raises(contract.OtherVersion, match=f"its sender has version {earlier} .* update its sender"):
        decode(msgspec.msgpack.encode({**fields, "v": earlier}), Job)
    for changes in ({"hue": 1}, {"v": "9"}, {"task": {"type": "Video", "v": contract.VERSION}}):
        with pytest.raises(MalformedMessage) as error:
            decode(msgspec.msgpack.encode({**fields, **changes}), Job)
        assert not isinstance(error.value, contract.OtherVersion)
    for version, outdated in ((later, "this program"), (earlier, "the worker 'w'")):
        presence = {"type": "Presence", "v": version, "worker": "w"}
        with pytest.raises(contract.OtherVersion, match=f"the worker 'w' has version {version} .* update {outdated}"):
            decode(msgspec.msgpack.encode(presence), contract.Presence)


def test_a_deeply_nested_bomb_is_malformed() -> None:
    for hostile_payload in (
        b"\x91" * 100_000,
        b"\x81\xa4task" * 20_000,
        b"\xdd\xff\xff\xff\xff",
        b"\xc6\xff\xff\xff\xff",
    ):
        with pytest.raises(MalformedMessage):
            decode(hostile_payload, Job)


def test_a_result_is_recognised_by_its_tag() -> None:
    message = contract.JobFinished(job="0" * 26, epoch=3, cost=1.0, seconds=2.0, ms_per_step=5.0)
    kind: Any = Result
    assert decode(encode(message), kind) == message
    with pytest.raises(MalformedMessage):
        decode(encode(make_recipe()), kind)


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({}, 8),
        ({"count": 1}, 2),
        ({"guidance": 1.0}, 4),
        ({"guidance": 1.0, "negative": "blur"}, 4),  # at guidance 1 the empty or negative text cancels out
        ({"guidance": 1.0, "concepts": (Concept("a", 0.5),)}, 8),
        ({"concepts": (Concept("a"), Concept("b"), Concept("c", -1.0))}, 16),
    ],
)
def test_rows_per_step_follow_from_the_recipe(changes: dict[str, Any], expected: int) -> None:
    assert count_rows(make_recipe(**changes)) == expected


def make_warm() -> ModelProfile:
    return ModelProfile(
        name="embedded",
        revision="",
        dtype="float32",
        size=64,
        multiple=8,
        max_pixels=65536,
        tokens=64,
        steps=50,
        sampler="ddim",
        samplers=("ddpm", "ddim", "euler", "dpmpp_2m"),
        guidance=4.0,
        row_ms=2.0,
        encode_ms=10.0,
        decode_ms=5.0,
    )


def test_the_cost_adds_steps_texts_and_decodes() -> None:
    assert estimate_cost(make_recipe(), make_warm()) == pytest.approx((8 * 10 * 2 + 2 * 10 + 4 * 5) / 1000)
    assert estimate_cost(make_recipe(bucket=8), make_warm()) == estimate_cost(make_recipe(), make_warm())
    assert estimate_cost(make_recipe(count=3, bucket=8), make_warm()) == pytest.approx(
        (8 * 10 * 2 + 2 * 10 + 3 * 5) / 1000
    )
    assert estimate_cost(make_recipe(bucket=5), make_warm()) == pytest.approx((10 * 10 * 2 + 2 * 10 + 4 * 5) / 1000)
    assert estimate_cost(make_recipe(width=128), make_warm()) == pytest.approx(
        (2 * 8 * 10 * 2 + 2 * 10 + 2 * 4 * 5) / 1000
    )


@pytest.mark.parametrize(("sampler", "evaluations"), [("ddim", 10), ("unipc", 10), ("heun", 19), ("kdpm2", 19)])
def test_the_cost_counts_every_evaluation_of_the_network(sampler: Any, evaluations: int) -> None:
    assert estimate_cost(make_recipe(sampler=sampler), make_warm()) == pytest.approx(
        (8 * evaluations * 2 + 2 * 10 + 4 * 5) / 1000
    )


def test_a_share_needs_a_weight_above_zero() -> None:
    with pytest.raises(MalformedMessage, match="weight"):
        decode(encode(BillingKey(tier="a", guild="b", user="c", weight=0.0)), BillingKey)
