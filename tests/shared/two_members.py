"""Two members about whom everything is stored: what is deleted or exported of one, and stays of the other."""

from __future__ import annotations

from bot.pictures.picture_store import PictureStore
from bot.store import Store
from bot.store.members import preferences
from bot.store.moderation import incidents
from shared.stored_jobs import admit_job, finish_job, make_new_job

# As long as Discord's ids, so that no random job id contains them.
ANN = "discord:70010000000000001"
BOB = "discord:70020000000000002"
NOW = 1000.0


async def create_jobs(store: Store, pictures: PictureStore) -> dict[str, str]:
    """Stores one row of each kind about Ann and Bob; returns their jobs."""
    jobs = {
        "done": await finish_job(store, pictures, make_new_job(ANN, created_at=10), "ann's", "both's"),
        "elsewhere": await finish_job(
            store, pictures, make_new_job(ANN, created_at=11, guild="discord:9"), "elsewhere"
        ),
        "waits": await admit_job(store, make_new_job(ANN, created_at=12)),
        "bob's": await finish_job(store, pictures, make_new_job(BOB, created_at=13), "bob's", "both's"),
    }
    upscale = make_new_job(BOB, created_at=14, action="upscale", parent=(jobs["done"], 0))
    jobs["enlarged"] = await finish_job(store, pictures, upscale, "ann's, larger")
    for member in (ANN, BOB):
        await store.write(preferences.update_preferences, member, {"suffix": f"as {member} likes it"})
        await store.write(incidents.write_incident, "local", "word", member, member, "a word", NOW - 1)
    await store.write(preferences.toggle_favourite, ANN, jobs["bob's"], 0, 20.0)
    await store.write(preferences.toggle_favourite, BOB, jobs["done"], 0, 20.0)
    await store.write(incidents.write_report, "local", ANN, "Ann 70010000000000001", "rude", 21.0, jobs["bob's"])
    return jobs
