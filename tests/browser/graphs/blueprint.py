"""The shipped subgraph: a Wan MODEL in, schedule and patch inside, a sparse MODEL out."""

from __future__ import annotations

from typing import Any

from .forms import identity, node_row
from .parts import APPLY, SCHEDULE, apply, schedule

NAME = "Wan2.1 + FPSAttention"
DESCRIPTION = (
    "Makes the self-attention of a Wan model sparse and FP8. Put it between the model loader and the sampler; choose a "
    "preset, or edit the schedule's text."
)
INPUT, OUTPUT, INSTANCE = -10, -20, 1


def inner_nodes() -> list[dict[str, Any]]:
    chosen, patch = schedule(preset="mild"), apply((0, 0), (SCHEDULE, 0))
    chosen.pos, chosen.size = (0, 0), (560, 820)
    patch.pos, patch.size = (640, 0), (380, 120)
    rows = [node_row(chosen, 0), node_row(patch, 1)]
    rows[0]["outputs"][0]["links"] = [2]
    rows[1]["inputs"][0]["link"], rows[1]["inputs"][1]["link"] = 1, 2
    rows[1]["outputs"][0]["links"] = [3]
    return rows


def link(number: int, origin: tuple[int, int], target: tuple[int, int], kind: str) -> dict[str, Any]:
    return {
        "id": number, "origin_id": origin[0], "origin_slot": origin[1], "target_id": target[0],
        "target_slot": target[1], "type": kind,
    }  # fmt: skip


def socket(what: str, links: list[int], pos: list[int]) -> dict[str, Any]:
    label = {"label": what}
    return {
        "id": identity(f"subgraphs/{NAME}/{what}"),
        "name": what,
        "type": "MODEL",
        "linkIds": links,
        "pos": pos,
    } | label


def blueprint() -> dict[str, Any]:
    """Return the file's content: one instance, and the definition of what it holds."""
    definition = {
        "id": identity(f"subgraphs/{NAME}/definition"),
        "version": 1,
        "state": {"lastGroupId": 0, "lastNodeId": APPLY, "lastLinkId": 3, "lastRerouteId": 0},
        "revision": 0,
        "config": {},
        "name": NAME,
        "description": DESCRIPTION,
        "category": "model/patch/FPSAttention",
        "inputNode": {"id": INPUT, "bounding": [-220, 0, 120, 60]},
        "outputNode": {"id": OUTPUT, "bounding": [1100, 0, 120, 60]},
        "inputs": [socket("model", [1], [-120, 20])],
        "outputs": [socket("MODEL", [3], [1120, 20])],
        "widgets": [],
        "nodes": inner_nodes(),
        "groups": [],
        "links": [
            link(1, (INPUT, 0), (APPLY, 0), "MODEL"),
            link(2, (SCHEDULE, 0), (APPLY, 1), "FPS_SCHEDULE"),
            link(3, (APPLY, 0), (OUTPUT, 0), "MODEL"),
        ],
        "extra": {},
    }
    promoted = [[str(SCHEDULE), "preset"], [str(SCHEDULE), "schedule"], [str(APPLY), "backend"]]
    instance = {
        "id": INSTANCE,
        "type": definition["id"],
        "pos": [0, 0],
        "size": [420, 300],
        "flags": {},
        "order": 0,
        "mode": 0,
        "inputs": [{"name": "model", "label": "model", "type": "MODEL", "link": None}],
        "outputs": [{"name": "MODEL", "label": "MODEL", "type": "MODEL", "links": []}],
        "properties": {"proxyWidgets": promoted, "cnr_id": "fpsattention", "ver": inner_version(definition)},
        "widgets_values": [],
        "title": NAME,
    }
    return {
        "id": identity(f"subgraphs/{NAME}"),
        "revision": 0,
        "last_node_id": INSTANCE,
        "last_link_id": 0,
        "nodes": [instance],
        "links": [],
        "version": 0.4,
        "definitions": {"subgraphs": [definition]},
        "extra": {},
    }


def inner_version(definition: dict[str, Any]) -> str:
    return definition["nodes"][0]["properties"]["ver"]
