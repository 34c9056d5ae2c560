"""One description of a graph, and its two forms: what the page opens, and what the server runs."""

from __future__ import annotations

import uuid
from dataclasses import dataclass, field
from typing import Any

from .types import OURS, TYPES, is_controlled

CORE_VERSION = "0.19.3"
PACK_VERSION = "0.1.0"
GROUP_COLOR = "#3f789e"
TITLE, GAP, TOP, MARGIN = 30, 30, 40, 20


@dataclass
class Node:
    """One node: how high it is, what its widgets hold, where its inputs come from (node id, output number).

    ``after`` says what becomes of a seed after a run; ``pos`` and ``size`` are filled by its column.
    """

    id: int
    type: str
    height: int
    widgets: dict[str, Any] = field(default_factory=dict)
    links: dict[str, tuple[int, int]] = field(default_factory=dict)
    title: str = ""
    models: list[dict[str, str]] = field(default_factory=list)
    color: tuple[str, str] | None = None
    after: str = "randomize"
    properties: dict[str, Any] = field(default_factory=dict)
    pos: tuple[int, int] = (0, 0)
    size: tuple[int, int] = (0, 0)


@dataclass
class Column:
    """Nodes one below the other, in a group with a title, or in none."""

    title: str
    width: int
    nodes: list[Node]


@dataclass
class Graph:
    """Nodes with places, and groups: title and box (left, top, width, height)."""

    nodes: list[Node]
    groups: list[tuple[str, tuple[int, int, int, int]]]


def place(columns: list[Column]) -> Graph:
    """Return the graph of ``columns`` from left to right; groups are as high as the highest column."""
    left, groups, nodes = 0, [], []
    bottom = TOP + max(sum(TITLE + n.height for n in c.nodes) + GAP * (len(c.nodes) - 1) for c in columns)
    for column in columns:
        top = TOP
        for node in column.nodes:
            node.pos, node.size = (left, top + TITLE), (column.width, node.height)
            top += TITLE + node.height + GAP
            nodes.append(node)
        if column.title:
            box = (left - MARGIN, -TOP // 2 - 10, column.width + 2 * MARGIN, bottom + TOP // 2 + 10 + MARGIN)
            groups.append((column.title, box))
        left += column.width + 2 * MARGIN + GAP
    return Graph(nodes, groups)


def owner(node_type: str) -> dict[str, str]:
    """What the host's manager needs to name a missing pack."""
    if node_type in OURS:
        return {"cnr_id": "fpsattention", "ver": PACK_VERSION}
    return {"cnr_id": "comfy-core", "ver": CORE_VERSION}


def input_rows(node: Node) -> list[dict[str, Any]]:
    """The node's slots, linked widgets last, without their links."""
    kind = TYPES[node.type]
    rows: list[dict[str, Any]] = [{"name": name, "type": slot, "link": None} for name, slot in kind.inputs]
    for name, slot in kind.linkable.items():
        if name in node.links:
            rows.append({"name": name, "type": slot, "widget": {"name": name}, "link": None})
    return rows


def widget_values(node: Node) -> list[Any]:
    """The node's widget values in the page's order, with what it adds beside a seed."""
    values: list[Any] = []
    for name in TYPES[node.type].widgets:
        values.append(node.widgets[name])
        if is_controlled(node.type, name):
            values.append(node.after)
        if node.type == "LoadImage" and name == "image":
            values.append("image")
    return values


def node_row(node: Node, order: int) -> dict[str, Any]:
    """The node as the page saves it, without its links."""
    properties: dict[str, Any] = {}
    if node.type != "MarkdownNote":
        properties = owner(node.type) | {"Node name for S&R": node.type}
    if node.models:
        properties["models"] = node.models
    row = {
        "id": node.id,
        "type": node.type,
        "pos": list(node.pos),
        "size": list(node.size),
        "flags": {},
        "order": order,
        "mode": 0,
        "inputs": input_rows(node),
        "outputs": [{"name": name, "type": kind, "links": None} for name, kind in TYPES[node.type].outputs],
        "properties": properties | node.properties,
        "widgets_values": widget_values(node),
    }
    if node.title:
        row["title"] = node.title
    if node.color:
        row["color"], row["bgcolor"] = node.color
    return row


def identity(what: str) -> str:
    """An id as the page wants it, the same every time a file is written."""
    return str(uuid.uuid5(uuid.NAMESPACE_URL, f"fpsattention/{what}"))


def ui_form(graph: Graph, name: str) -> dict[str, Any]:
    """Return the UI-format workflow called ``name``."""
    rows = {node.id: node_row(node, order) for order, node in enumerate(graph.nodes)}
    links: list[list[Any]] = []
    for node in graph.nodes:
        for slot, entry in enumerate(rows[node.id]["inputs"]):
            if entry["name"] not in node.links:
                continue
            source, output = node.links[entry["name"]]
            outgoing = rows[source]["outputs"][output]
            number = len(links) + 1
            links.append([number, source, output, node.id, slot, outgoing["type"]])
            entry["link"] = number
            outgoing["links"] = [*(outgoing["links"] or []), number]
    return {
        "id": identity(f"workflows/{name}"),
        "revision": 0,
        "last_node_id": max(rows),
        "last_link_id": len(links),
        "nodes": list(rows.values()),
        "links": links,
        "groups": [
            {"id": i, "title": title, "bounding": list(box), "color": GROUP_COLOR, "font_size": 24, "flags": {}}
            for i, (title, box) in enumerate(graph.groups, 1)
        ],
        "config": {},
        "extra": {"ds": {"scale": 0.6, "offset": [60, 120]}},
        "version": 0.4,
    }


def api_form(graph: Graph) -> dict[str, Any]:
    """Return the API-format twin: what the page sends to the server for the same graph."""
    api = {}
    for node in graph.nodes:
        if node.type == "MarkdownNote":
            continue
        kind = TYPES[node.type]
        values: dict[str, Any] = {name: node.widgets[name] for name in kind.widgets}
        values |= {name: [str(source), output] for name, (source, output) in node.links.items()}
        meta = {"title": node.title or kind.display} | owner(node.type)
        api[str(node.id)] = {"inputs": values, "class_type": node.type, "_meta": meta}
    return api
