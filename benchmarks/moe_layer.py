"""Times the MoE layer against its limit and its rivals, on one process.

All contestants run in turn, round after round, in one process; each figure is the median over the
rounds, and "x limit" is the median of the ratios within a round, so that a machine that slows down
slows everybody down. `limit` is the experts alone on perfectly balanced tokens, without a gate.

    python benchmarks/moe_layer.py --experts 8,32 --top-k 1 --dtypes float32 --out layer.json

Rivals that are not installed are left out: `pip install '.[bench]'` brings them.
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import subprocess
import sys
import time
from dataclasses import asdict
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import torch
from contestants import CONTESTANTS, Shape
from torch import nn

Row = dict[str, Any]


def main() -> None:
    args = parse_arguments()
    if args.one is not None:
        print(json.dumps(peak_memory(args)))
        return
    torch.set_num_threads(args.threads)
    rows = [
        row
        for dtype in args.dtypes.split(",")
        for k in map(int, args.top_k.split(","))
        for experts in map(int, args.experts.split(","))
        for row in time_all(Shape(args.tokens, args.dim, args.ffn, experts, k, dtype), args)
    ]
    record = {
        "date": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "machine": f"{platform.machine()}, {args.threads} threads, {device_name(args.device)}",
        "torch": torch.__version__,
        "tokens": args.tokens,
        "dim": args.dim,
        "ffn": args.ffn,
        "warm_up": args.warm_up,
        "rounds": args.rounds,
        "rows": rows,
    }
    if args.out:
        args.out.write_text(json.dumps(record, indent=2) + "\n")
        print(f"results: {args.out}")


def device_name(device: str) -> str:
    return torch.cuda.get_device_name() if device.startswith("cuda") else device


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add = parser.add_argument
    add("--tokens", type=int, default=2048)
    add("--dim", type=int, default=512, help="model dimension")
    add("--ffn", type=int, default=2048, help="hidden dimension of an expert")
    add("--experts", default="8,32,64,128")
    add("--top-k", default="1,2")
    add("--dtypes", default="float32,bfloat16")
    add("--threads", type=int, default=2)
    add("--rounds", type=int, default=9)
    # oneDNN compiles a bf16 product anew for each number of rows that it has not met.
    add("--warm-up", type=int, default=10, help="rounds before those that count")
    add("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    add("--only", help="contestants, comma-separated")
    add("--memory", action="store_true", help="peak memory too, each in a process of its own")
    add("--out", type=Path, help="JSON file to write")
    add("--one", help=argparse.SUPPRESS)
    return parser.parse_args()


def time_all(shape: Shape, args: argparse.Namespace) -> list[Row]:
    """One table: every contestant of a shape, in turn."""
    layers = build_all(shape, args)
    times: dict[str, list[tuple[float, float, float]]] = {name: [] for name in layers}
    for round_number in range(args.warm_up + args.rounds):
        for name, layer in layers.items():
            figures = time_once(layer, shape, args.device)
            if round_number >= args.warm_up:
                times[name].append(figures)
    rows = []
    for name, timed in times.items():
        row: Row = {
            "contestant": name,
            "experts": shape.experts,
            "k": shape.k,
            "dtype": shape.dtype,
        }
        for index, what in enumerate(("forward", "step", "step_cpu")):
            values = [figures[index] for figures in timed]
            limit = [figures[index] for figures in times["limit"]]
            row[f"{what}_ms"] = round(statistics.median(values), 2)
            ratios = [value / other for value, other in zip(values, limit, strict=True)]
            row[f"{what}_x_limit"] = round(statistics.median(ratios), 3)
        if args.memory:
            row.update(measure_memory(name, shape, args))
        rows.append(row)
    print_table(shape, rows)
    return rows


def build_all(shape: Shape, args: argparse.Namespace) -> dict[str, nn.Module]:
    wanted = args.only.split(",") if args.only else list(CONTESTANTS)
    layers = {}
    for name in dict.fromkeys(["limit", *wanted]):
        torch.manual_seed(1)
        try:
            layer = CONTESTANTS[name](shape)
        except ImportError:
            continue
        if layer is not None:
            layers[name] = layer.to(args.device, shape.torch_dtype).train()
    return layers


def time_once(layer: nn.Module, shape: Shape, device: str) -> tuple[float, float, float]:
    """Milliseconds of the forward pass, of forward and backward, and CPU time of both."""
    x, grad = make_input(shape, device)
    for parameter in layer.parameters():
        parameter.grad = None
    synchronise(device)
    start, start_cpu = time.perf_counter(), time.process_time()
    output = layer(x)
    synchronise(device)
    middle = time.perf_counter()
    output.backward(grad)
    synchronise(device)
    end, end_cpu = time.perf_counter(), time.process_time()
    return 1e3 * (middle - start), 1e3 * (end - start), 1e3 * (end_cpu - start_cpu)


def make_input(shape: Shape, device: str) -> tuple[torch.Tensor, torch.Tensor]:
    """An input, and the gradient of the output."""
    x = torch.randn(shape.tokens, shape.dim, dtype=shape.torch_dtype, device=device)
    return x.requires_grad_(), torch.randn_like(x)


def synchronise(device: str) -> None:
    if device == "cuda":
        torch.cuda.synchronize()


def measure_memory(name: str, shape: Shape, args: argparse.Namespace) -> dict[str, float]:
    """See `peak_memory`; in a process of its own."""
    command = [
        sys.executable, __file__, "--one", name, "--experts", str(shape.experts), "--top-k",
        str(shape.k), "--dtypes", shape.dtype, "--tokens", str(shape.tokens), "--dim",
        str(shape.dim), "--ffn", str(shape.ffn), "--threads", str(args.threads), "--device",
        args.device,
    ]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return json.loads(done.stdout.splitlines()[-1])


def peak_memory(args: argparse.Namespace) -> dict[str, float]:
    """MiB above what parameters and input take.

    `forward_mib` is the peak of a forward pass that will be differentiated: its activations.
    `step_mib` is that of the backward pass, gradients of the weights included.
    """
    torch.set_num_threads(args.threads)
    shape = Shape(args.tokens, args.dim, args.ffn, int(args.experts), int(args.top_k), args.dtypes)
    layer = CONTESTANTS[args.one](shape)
    assert layer is not None
    layer = layer.to(args.device, shape.torch_dtype).train()
    x, grad = make_input(shape, args.device)
    if args.device == "cpu":
        Path("/proc/self/clear_refs").write_text("5")  # the peak begins anew
    before = memory_in_use(args.device)
    output = layer(x)
    after_forward = memory_in_use(args.device)
    output.backward(grad)
    after_backward = memory_in_use(args.device)
    return {
        "forward_mib": round(after_forward - before, 1),
        "step_mib": round(after_backward - before, 1),
    }


def memory_in_use(device: str) -> float:
    """Peak so far, MiB: of the allocator on a GPU, of the process on a CPU."""
    if device == "cuda":
        return torch.cuda.max_memory_allocated() / 2**20
    # Not getrusage: its peak is inherited from the process that started this one.
    status = Path("/proc/self/status").read_text()
    return int(status.split("VmHWM:")[1].split()[0]) / 1024


def print_table(shape: Shape, rows: list[Row]) -> None:
    print(f"\n{shape.experts} experts, top-{shape.k}, {shape.dtype}, {shape.tokens} tokens")
    columns = [key for key in rows[0] if key not in asdict(shape)]
    print("".join(f"{column:>17}" for column in columns))
    for row in sorted(rows, key=lambda item: item["step_ms"]):
        print("".join(f"{row[column]!s:>17}" for column in columns), flush=True)


if __name__ == "__main__":
    main()
