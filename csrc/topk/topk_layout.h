// Windows of sparse rows: of every block of columns, each row keeps the entries largest in magnitude, as values [m,
// blocks, kept] and uint16 offsets within the block, ascending. A last block with fewer columns than entries is filled
// up with zeros at offset 0.
#pragma once

#include "formats.h"

namespace mfac {

struct TopKLayout {
  int64_t rank, blocks, kept, dim, block_size;
  MFAC_HOST_DEVICE int64_t begin(int64_t b) const { return b * block_size; }
  MFAC_HOST_DEVICE int64_t cols(int64_t b) const { return dim - begin(b) < block_size ? dim - begin(b) : block_size; }
  // Entries of a block but for those that fill it up.
  MFAC_HOST_DEVICE int64_t count(int64_t b) const { return kept < cols(b) ? kept : cols(b); }
  MFAC_HOST_DEVICE int64_t entry(int64_t row, int64_t b) const { return (row * blocks + b) * kept; }
};

}  // namespace mfac
