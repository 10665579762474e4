"""Draws docs/plots/batch.svg, a batch's way through the system: `python docs/plots/batch.py`."""

from __future__ import annotations

from pathlib import Path
from xml.sax.saxutils import escape

INK, SOFT, RANK, EXPERT, LINE = "#1a1a1a", "#5f6368", "#f4f6f8", "#dbe9f6", "#2f6da8"
WIDTH, HEIGHT = 1120, 1350
COLUMNS = (330, 740)  # left edges of the two ranks
ROOM = 350  # width of a rank
# Tokens of the MoE layer on each rank, and the expert that the gate chose for each.
TOKENS = (
    {"a": 0, "b": 2, "c": 0, "d": 3, "e": 0, "f": 1},
    {"p": 1, "q": 3, "r": 1, "s": 0, "t": 2},
)
DROPPED: tuple[set[str], set[str]] = ({"a"}, set())
PARTS = (
    ({"mt": 7, "dae": 5, "mlm": 4, "electra": 6}),
    ({"mt": 9, "dae": 3, "mlm": 6, "electra": 4}),
)


class Drawing:
    """Shapes in the order in which they are drawn."""

    def __init__(self) -> None:
        self.shapes: list[str] = []

    def box(self, x: float, y: float, w: float, h: float, fill: str = "white", **how: str) -> None:
        style = {"stroke": INK, "stroke-width": "1.5", "rx": "5", **how}
        more = " ".join(f'{name}="{value}"' for name, value in style.items())
        self.shapes.append(f'<rect x="{x}" y="{y}" width="{w}" height="{h}" fill="{fill}" {more}/>')

    def text(
        self, x: float, y: float, words: str, size: int = 15, anchor: str = "middle", **how: str
    ) -> None:
        style = {"fill": INK, **how}
        more = " ".join(f'{name}="{value}"' for name, value in style.items())
        self.shapes.append(
            f'<text x="{x}" y="{y}" font-size="{size}" text-anchor="{anchor}" {more}>'
            f"{escape(words)}</text>"
        )

    def line(self, x: float, y: float, to_x: float, to_y: float, **how: str) -> None:
        style = {"stroke": LINE, "stroke-width": "2", "marker-end": "url(#tip)", **how}
        more = " ".join(f'{name}="{value}"' for name, value in style.items())
        self.shapes.append(f'<line x1="{x}" y1="{y}" x2="{to_x}" y2="{to_y}" {more}/>')

    def token(self, x: float, y: float, name: str, dropped: bool = False) -> None:
        dash = ' stroke-dasharray="3 3"' if dropped else ""
        self.shapes.append(
            f'<circle cx="{x}" cy="{y}" r="13" fill="white" stroke="{INK}" '
            f'stroke-width="1.5"{dash}/>'
        )
        self.text(x, y + 5, name)

    def step(self, y: float, number: int, title: str, *lines: str) -> None:
        """What happens at a height, in the margin."""
        self.shapes.append(f'<circle cx="34" cy="{y}" r="14" fill="{INK}"/>')
        self.text(34, y + 5, str(number), fill="white")
        self.text(58, y + 6, title, 17, "start", **{"font-weight": "bold"})
        for index, words in enumerate(lines):
            self.text(58, y + 28 + 19 * index, words, 14, "start", fill=SOFT)

    def svg(self) -> str:
        head = (
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" '
            f'width="{WIDTH}" height="{HEIGHT}" font-family="Helvetica, Arial, sans-serif">'
        )
        tip = (
            '<defs><marker id="tip" viewBox="0 0 10 10" refX="9" refY="5" markerWidth="7" '
            f'markerHeight="7" orient="auto"><path d="M0 0L10 5L0 10z" fill="{LINE}"/></marker>'
            '<pattern id="hatch" width="8" height="8" patternUnits="userSpaceOnUse" '
            f'patternTransform="rotate(45)"><rect width="8" height="8" fill="{EXPERT}"/>'
            f'<line x1="0" y1="0" x2="0" y2="8" stroke="{LINE}" stroke-width="1.5"/>'
            "</pattern></defs>"
        )
        background = f'<rect width="{WIDTH}" height="{HEIGHT}" fill="white"/>'
        return "\n".join([head, tip, background, *self.shapes, "</svg>"]) + "\n"


def slots(rank: int, expert: int) -> list[str]:
    """Tokens of a rank that an expert accepts."""
    chosen = TOKENS[rank].items()
    return [name for name, e in chosen if e == expert and name not in DROPPED[rank]]


def group_x(rank: int, expert: int) -> float:
    """Middle of the places that a rank has for an expert."""
    return COLUMNS[rank] + 44 + 87 * expert


def expert_x(expert: int) -> float:
    return COLUMNS[expert // 2] + ROOM * (0.27 + 0.46 * (expert % 2))


def batch_and_layers(draw: Drawing) -> None:
    draw.step(
        85, 1, "Joint batch",
        "a part of each objective, in one", "order on all ranks; shapes may",
        "differ, nothing is padded",
    )  # fmt: skip
    draw.step(
        245, 2, "Encoder and decoder", "every 2nd layer has experts;",
        "mlm and electra: encoder alone",
    )  # fmt: skip
    for rank, left in enumerate(COLUMNS):
        draw.text(left + ROOM / 2, 34, f"rank {rank}", 18, **{"font-weight": "bold"})
        for row, (name, count) in enumerate(PARTS[rank].items()):
            y = 62 + 31 * row
            draw.text(left + 80, y + 16, name, anchor="end")
            for index in range(count):
                draw.box(left + 96 + 24 * index, y, 20, 22, rx="2")
        for index in range(6):
            x = left + 18 + 55 * index
            fill = "url(#hatch)" if index % 2 else "white"
            draw.box(x, 236, 38, 54, fill)
            if index:
                draw.line(x - 16, 263, x - 2, 263)
        draw.line(left + ROOM / 2, 190, left + ROOM / 2, 230)
        # The zoom into one layer.
        hatched = left + 18 + 55 * 3
        for x, to_x in ((hatched, left + 8), (hatched + 38, left + ROOM - 8)):
            draw.line(
                x, 292, to_x, 338, stroke=SOFT, **{"stroke-dasharray": "4 4", "marker-end": "none"}
            )


def gate_and_capacity(draw: Drawing) -> None:
    draw.step(
        375, 3, "Gate", "float32 softmax over all experts;", "each token's top-k (here top-1)"
    )  # fmt: skip
    draw.step(
        500, 4, "Capacity and RTS", "an expert accepts 2 tokens of each",
        "rank here; which, is drawn at", "random: a, c or e had to go.",
        "A dropped token keeps only its", "residual connection",
    )  # fmt: skip
    for rank, left in enumerate(COLUMNS):
        for index, (name, expert) in enumerate(TOKENS[rank].items()):
            x: float = left + 50 + 50 * index
            draw.token(x, 368, name)
            draw.text(x, 403, f"→ {expert}", 14, fill=SOFT)
        draw.line(left + ROOM / 2, 414, left + ROOM / 2, 452)
        for expert in range(4):
            x = group_x(rank, expert)
            draw.box(x - 36, 482, 72, 38)
            draw.text(x, 474, f"for expert {expert}", 12, fill=SOFT)
            for place, name in enumerate(slots(rank, expert)):
                draw.token(x - 17 + 34 * place, 501, name)
    draw.token(COLUMNS[0] + 14, 552, "a", dropped=True)
    draw.text(COLUMNS[0] - 4, 584, "dropped", 12, "start", fill=SOFT)


def exchange_and_experts(draw: Drawing) -> None:
    draw.step(
        660, 5, "Exchange", "all-to-all: counts first, then", "exactly those rows, over the",
        "ranks of --expert-parallel-size",
    )  # fmt: skip
    draw.step(
        775, 6, "Experts", "a feed-forward network each,", "on the rank where it lives"
    )  # fmt: skip
    draw.step(
        900, 7, "Exchange back, combine", "output x weight of the gate,",
        "added to the residual; tokens", "are in their places again",
    )  # fmt: skip
    for rank in range(2):
        for expert in range(4):
            here = slots(rank, expert)
            if here:
                x = group_x(rank, expert)
                draw.line(x, 522, expert_x(expert) + (rank - 0.5) * 26, 730)
    for expert in range(4):
        x = expert_x(expert)
        draw.box(x - 72, 734, 144, 78, "url(#hatch)")
        draw.box(x - 62, 741, 124, 22, rx="3", **{"stroke": "none"})
        draw.text(x, 757, f"expert {expert}")
        tokens = [name for rank in range(2) for name in slots(rank, expert)]
        for place, name in enumerate(tokens):
            draw.token(x + 36 * (place - (len(tokens) - 1) / 2), 788, name)
    for rank, left in enumerate(COLUMNS):
        for index, name in enumerate(TOKENS[rank]):
            draw.token(left + 50 + 50 * index, 918, name, name in DROPPED[rank])
        draw.line(left + ROOM / 2, 815, left + ROOM / 2, 896)
        draw.line(COLUMNS[rank] + ROOM * 0.7, 815, COLUMNS[1 - rank] + ROOM * 0.3, 896)


def losses_and_gradients(draw: Drawing) -> None:
    draw.step(
        1035, 8, "Losses", "mean of each objective over its", "targets on all ranks, times its",
        "weight; and the gate's losses",
    )  # fmt: skip
    draw.step(
        1190, 9, "Gradients", "one norm for clipping, the same", "number on every rank; then the",
        "optimizer's step",
    )  # fmt: skip
    names = ("mt", "dae", "mlm", "electra", "gate")
    for left in COLUMNS:
        draw.line(left + ROOM / 2, 938, left + ROOM / 2, 1006)
        for index, name in enumerate(names):
            x = left + 5 + 69 * index
            draw.box(x, 1012, 54, 34)
            draw.text(x + 27, 1034, name, 14)
            if index:
                draw.text(x - 7.5, 1035, "+")
        draw.line(left + ROOM / 2, 1048, left + ROOM / 2, 1142)
    first, last = COLUMNS[0], COLUMNS[1] + ROOM
    draw.box(first, 1074, last - first, 36, RANK)
    draw.text((first + last) / 2, 1098, "numbers of targets, summed over all ranks")
    draw.box(first, 1146, last - first, 42, RANK)
    draw.text(
        (first + last) / 2, 1172, "attention, embeddings, norms, gates: averaged over all ranks", 16
    )  # fmt: skip
    for left, experts in zip(COLUMNS, ("experts 0, 1", "experts 2, 3"), strict=True):
        draw.box(left, 1202, ROOM, 62, "url(#hatch)")
        draw.box(left + 8, 1209, ROOM - 16, 48, rx="3", **{"stroke": "none"})
        draw.text(left + ROOM / 2, 1229, f"{experts}: stay here, divided by all ranks,")
        draw.text(left + ROOM / 2, 1249, "summed over ranks that hold the same")
    legend = ("hatched: with experts", "dashed: dropped", "grey: all ranks together")
    for x, words in zip((430, 650, 880), legend, strict=True):
        draw.text(x, 1310, words, 14, fill=SOFT)


def main() -> None:
    """Write batch.svg beside this file."""
    draw = Drawing()
    for left in COLUMNS:
        draw.box(left - 8, 46, ROOM + 16, 152, RANK, stroke="none")
        draw.box(left - 8, 340, ROOM + 16, 606, RANK, stroke="none")
    batch_and_layers(draw)
    gate_and_capacity(draw)
    exchange_and_experts(draw)
    losses_and_gradients(draw)
    Path(__file__).with_suffix(".svg").write_text(draw.svg())


if __name__ == "__main__":
    main()
