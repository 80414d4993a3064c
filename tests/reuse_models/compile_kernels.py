"""Compile the Triton kernels for a GPU that need not be there: `python -m tests.reuse_models.compile_kernels 1 0`.

Takes the number of prefix tokens, and 1 for the last layer. In a process of its own: where Triton's interpreter is
wanted, nothing can be compiled.
"""

from __future__ import annotations

import sys

import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from reuse_models.reusevit.engines import fused_kernels

HOPPER = GPUTarget("cuda", 90, 32)
SIZES = {
    "WIDTH": 384, "HEADS": 6, "HEAD_DIM": 64, "BLOCK_D": 64, "RANK": 32, "BLOCK_R": 32, "PREFIX_T": 16, "PATCHES": 256,
    "BLOCK_M": 128, "BLOCK_N": 64, "STAGES": 3, "BLOCK_T": 16, "BLOCK_C": 128, "BLOCK_H": 16, "FORCED": False,
    "LOG": True, "UNITS": 80, "BLOCK_U": 128, "BOUNDARIES": 11, "LEAST": 1e-4, "GROUP": 4, "SECOND_A": 0, "SECOND_B": 1,
    "SECOND_KIND": 1, "THIRD_A": 0, "THIRD_B": 2, "THIRD_KIND": 2, "FOURTH_A": 1, "FOURTH_B": 2, "FOURTH_KIND": 2,
    "WITH_PRE_PROJ": True, "CHANNELS": 1152, "WITH_H": True, "WITH_STATES": True, "BLOCK": 512,
}  # fmt: skip
TYPES = {
    "*i8": ("reuse", "seen", "seen_pre_proj"),
    "*i32": ("base", "anchor_F", "source", "rows", "counter", "computed"),
    "*i64": ("streams_S", "draws", "slot_of_F"),
    "*fp32": ("scores", "stats", "masks", "norm_out", "anchor_norm", "norm", "anchors_norm", "saved_norm", "shift",
              "scale"),
    "i32": ("num_tokens", "num_rows", "capacity", "boundary"),
    "i64": ("anchors_ahead",),
    "fp32": ("eps", "log2_scale"),
}  # fmt: skip
TYPE_OF = {argument: kind for kind, arguments in TYPES.items() for argument in arguments}


def main(prefix: int, last: bool) -> None:
    """Compile all kernels, and write a line for each."""
    sizes = SIZES | {"PREFIX": prefix, "LAST": last, "TILES": 0 if last else 2}
    for name in ("fill", "attend", "choose", "gather", "move", "hidden", "norm"):
        kernel = getattr(fused_kernels, f"{name}_kernel")
        type_of = TYPE_OF | {"bias": "fp32"} if name == "choose" else TYPE_OF
        strides = {argument: "i32" for argument in kernel.arg_names if argument.endswith("_stride")}
        signature = {
            argument: "constexpr" if argument in sizes else (type_of | strides).get(argument, "*bf16")
            for argument in kernel.arg_names
        }
        constants = {(at,): sizes[argument] for at, argument in enumerate(kernel.arg_names) if argument in sizes}
        compiled = triton.compile(ASTSource(kernel, signature, constants), target=HOPPER)
        sys.stdout.write(f"{name} {len(compiled.asm['cubin'])} bytes\n")


if __name__ == "__main__":
    main(int(sys.argv[1]), sys.argv[2] == "1")
