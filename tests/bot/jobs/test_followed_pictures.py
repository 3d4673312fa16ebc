"""Control and reference pictures over a real broker and store: kept, sent, inherited, ruled, deleted."""

from __future__ import annotations

import msgspec
import pytest

from bot.domain.dto import Member
from bot.domain.errors import UserError
from bot.jobs.init_images import InitImages, JobImageRef
from bot.store.jobs import queries
from engine.contract import ModelPart, estimate_cost
from shared import app_harness
from shared.app_harness import open_app_and_worker, wait_for_end
from shared.model_parts import MODEL_PARTS
from shared.picture_files import make_png

pytestmark = pytest.mark.asyncio
BOB = Member("local:bob", "Bob", "local")
OWNER = Member("local:o", "O", "local", is_owner=True, is_admin=True)
SKETCH = make_png(32, 64, 10)
FACE = make_png(32, 32, 20)
BEGINNING = make_png(64, 64, 30)
BOTH = InitImages(controls=(SKETCH,), references=(FACE,))


@pytest.fixture(autouse=True)
def _model_with_parts(monkeypatch):
    """The fake worker's model has control networks and further parts."""
    make_profile = app_harness.make_profile
    monkeypatch.setattr(
        app_harness, "make_profile", lambda *arguments: msgspec.structs.replace(make_profile(*arguments), **MODEL_PARTS)
    )


async def list_inputs(app, job):
    rows = await app.store.query(queries.list_pictures, [job])
    return {row.kind: row.sha256 for row in rows if row.kind not in ("image", "ladder")}


async def test_pictures_reach_the_worker_and_the_jobs_made_from_it_and_go_with_it(
    harness, wait_until, ann, destination, stored_names
):
    app, worker = await open_app_and_worker(harness, wait_until)
    services = app.services
    text = "a lamp by moebius --count 2 --control canny:0.8:0-0.5 --vae mse --clip-skip 2 --steps 40 --ar 1:1"
    (accepted,) = await services.jobs.imagine(text, ann, destination, init_images=BOTH)
    view = await wait_for_end(app, accepted.job, wait_until)
    task = view.task
    inputs = await list_inputs(app, view.id)
    assert (view.state, view.notes) == ("finished", ())
    assert (task.controls[0].picture, task.references[0].picture) == (inputs["control"], inputs["reference"])
    assert set(worker.fetched_blobs) == set(inputs.values()) <= stored_names()
    plain = msgspec.structs.replace(task, controls=(), references=())
    profile = services.catalog.find_entry(None).profile
    assert accepted.cost == pytest.approx(estimate_cost(task, profile))
    assert accepted.cost > estimate_cost(plain, profile)

    derived = {
        "vary": await services.variations.vary(view.id, 0, BOB, destination),
        "reproduce": await services.variations.reproduce(view.id, BOB, destination),
        "remix": (await services.variations.remix(view.id, 0, "a red lamp", BOB, destination))[0],
        "edit": await services.edits.edit(view.id, 1, make_png(task.width, task.height, 255), BOB, destination),
        "zoom": await services.edits.zoom(view.id, 1, 2.0, BOB, destination),
        "branch": await services.edits.branch(view.id, 1, 20, BOB, destination),
    }
    for action, job in derived.items():
        made = await wait_for_end(app, job.job, wait_until)
        assert made.state == "finished", (action, made.reason)
        assert made.task.references == task.references, action
        assert made.task.controls == (() if action == "zoom" else task.controls), action
        assert (made.task.autoencoder, made.task.clip_skip, made.task.quantization) == (
            ModelPart("mse", "v1"),
            1,
            "int8",
        )
        assert bool(made.task.embeddings) == (action != "remix"), action
        kept = await list_inputs(app, made.id)
        assert kept["reference"] == inputs["reference"], action
        assert kept.get("control") == (None if action == "zoom" else inputs["control"]), action

    await services.moderation.delete_pictures(view.id, ann)
    assert not stored_names() & set(inputs.values()), "uploads go with their job, also from the jobs made from it"
    with pytest.raises(UserError):
        await services.variations.reroll(derived["vary"].job, BOB, destination)


async def test_control_follows_an_init_image_or_a_finished_picture(harness, wait_until, ann, destination):
    app, _ = await open_app_and_worker(harness, wait_until)
    begun = InitImages((BEGINNING,))
    (accepted,) = await app.services.jobs.imagine("a lamp --control canny", ann, destination, init_images=begun)
    view = await wait_for_end(app, accepted.job, wait_until)
    assert view.task.controls[0].picture == view.task.start.pictures[0].sha256
    zoomed = await app.services.edits.edit(view.id, 0, make_png(64, 64, 255), BOB, destination)
    assert (await list_inputs(app, zoomed.job))["control"] == view.task.controls[0].picture
    finished = InitImages(controls=(JobImageRef(view.id, 0),))
    (accepted,) = await app.services.jobs.imagine("a cat", BOB, destination, init_images=finished, control="tile")
    view = await wait_for_end(app, accepted.job, wait_until)
    assert (view.state, view.task.controls[0].name, view.task.start) == ("finished", "tile", None)


async def test_what_cannot_be_followed_is_refused_and_kept_nowhere(harness, wait_until, ann, destination, stored_names):
    app, _ = await open_app_and_worker(harness, wait_until)
    for images, text, words in (
        (InitImages(controls=(b"no picture",)), "a lamp --control canny", "The control picture has a format"),
        (InitImages(controls=(SKETCH,)), "a lamp", "as --control NAME: canny, tile"),
        (InitImages(controls=(SKETCH,)), "", "The prompt is empty"),
        (InitImages(controls=4 * (SKETCH,)), "a lamp --control canny", "at most 3 control pictures"),
        (InitImages(references=5 * (FACE,)), "a lamp", "at most 4 reference pictures"),
        (InitImages(mask=SKETCH, references=(FACE,)), "a lamp", "One to 5 pictures may begin a job"),
        (None, "a lamp --reference face", "--reference is for a picture beside the prompt"),
    ):
        with pytest.raises(UserError, match=words):
            await app.services.jobs.imagine(text, ann, destination, init_images=images)
    assert stored_names() == set()


async def test_rules_allow_some_controls_and_no_reference_pictures(harness, wait_until, ann, destination):
    app, _ = await open_app_and_worker(harness, wait_until)
    imagine = app.services.jobs.imagine
    for setting, value in (("controls", "tile"), ("references", "none")):
        await app.services.rule_admin.set_rule(OWNER, "guild", "", setting, value)
    sketch = InitImages(controls=(SKETCH,))
    face = InitImages(references=(FACE,))
    with pytest.raises(UserError, match="The control canny is not allowed here; allowed: tile") as refused:
        await imagine("a lamp --control canny", ann, destination, init_images=sketch)
    assert refused.value.status == 403
    with pytest.raises(UserError, match="Reference pictures by face are not allowed here; allowed: none"):
        await imagine("a lamp", ann, destination, init_images=face)
    assert await imagine("a lamp --control tile --ar 1:1", ann, destination, init_images=sketch)
