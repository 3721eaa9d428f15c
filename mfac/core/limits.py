"""Sizes that the kernels have, for what lays out memory for them."""

from __future__ import annotations

SCALE_COLUMNS = 1024  # of an int8 row share a scale: kScaleColumns in csrc/common/formats.h
PACKET_BYTES = 16  # that a GPU's thread loads at a time: kPacketBytes in csrc/cuda/packet.cuh
TOPK_TILE_COLUMNS = 1024  # kTopKTileColumns in csrc/window/topk/topk_layout.h
TOPK_BLOCK_COLUMNS = 16384  # widest block of a sparse row: a block of float64 sums is 128 KiB
