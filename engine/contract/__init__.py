"""The wire contract: every value that crosses a process boundary.

It defines how a value looks and how large it may be, and imports neither NATS, torch, SQL nor Discord. Every value is
frozen, tagged (`type`), versioned (`v`) and strict: unknown fields are refused. Every string, list and number is
bounded: bytes from another process are untrusted until `decode` has accepted them.

All public names can be imported from here. They lie in these files:

- `fields`: versions, limits, bounded field types, the base of all messages, the samplers, and the exception for a job
  that the engine refuses or fails.
- `recipe`: the recipe and its parts, and what members change while it develops. `recipe_images`: what follows from it
  for one image, and names in its texts. `evaluations`: the steps at which its network is evaluated or guided.
- `messages`: the job, its previews, results and control messages, its stored states, requests without a job; bytes
  from and to values.
- `steering`: what changes mean at each step, and why a change cannot be.
- `presence`: what a worker announces, whether a model has what a recipe uses, and what a recipe costs on it.
"""

from __future__ import annotations

from engine.contract.evaluations import *
from engine.contract.fields import *
from engine.contract.messages import *
from engine.contract.presence import *
from engine.contract.recipe import *
from engine.contract.recipe_images import *
from engine.contract.steering import *
