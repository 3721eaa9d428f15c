// Windows of sparse rows: of every block of columns, each row keeps the entries largest in
// magnitude, as values [m, blocks, kept] and uint16 offsets within the block, ascending. A last
// block with fewer columns than entries is filled up with zeros at offset 0.
//
// Boundaries [blocks, tiles - 1, m], uint16, say where a row crosses from one tile of a block's
// columns to the next: of tile t the number of entries before it, for t from 1 on. They follow from
// the offsets; a push keeps them up to date.
#pragma once

#include "common/formats.h"

namespace mfac {

constexpr int kTopKTileColumns = 1024;        // whose float64 sums four warps have in shared memory (topk.cuh)
constexpr int64_t kTopKBlockColumns = 16384;  // of the widest block that a window has: float64 sums of 128 KiB

struct TopKLayout {
  int64_t rank, blocks, kept, dim, block_size;
  MFAC_HOST_DEVICE int64_t begin(int64_t b) const { return b * block_size; }
  MFAC_HOST_DEVICE int64_t cols(int64_t b) const { return dim - begin(b) < block_size ? dim - begin(b) : block_size; }
  // Entries of a block, without the zeros that fill the last block up.
  MFAC_HOST_DEVICE int64_t count(int64_t b) const { return kept < cols(b) ? kept : cols(b); }
  MFAC_HOST_DEVICE int64_t entry(int64_t row, int64_t b) const { return (row * blocks + b) * kept; }
  MFAC_HOST_DEVICE int tiles() const { return int((block_size + kTopKTileColumns - 1) / kTopKTileColumns); }
  MFAC_HOST_DEVICE int64_t boundary(int64_t row, int64_t b, int tile) const {
    return (b * (tiles() - 1) + tile - 1) * rank + row;
  }
};

}  // namespace mfac
