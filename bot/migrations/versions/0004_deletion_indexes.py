"""Indexes for deletion: which jobs have a picture, and which jobs were made from a job."""

from __future__ import annotations

from alembic import op

revision = "0004"
down_revision = "0003"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_index("pictures_sha256", "pictures", ["sha256"])
    op.create_index("jobs_parent", "jobs", ["parent", "action"])
    op.create_index("incidents_job", "incidents", ["job", "closed"])
    op.create_index("incidents_actor", "incidents", ["actor", "kind", "at"])


def downgrade() -> None:
    op.drop_index("incidents_actor", "incidents")
    op.drop_index("incidents_job", "incidents")
    op.drop_index("jobs_parent", "jobs")
    op.drop_index("pictures_sha256", "pictures")
