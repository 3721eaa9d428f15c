// How a Fisher of `rank` rows and `dim` columns falls into diagonal blocks of `block_size` columns,
// on every device. A block of B columns is dual where m < B and primal where m >= B; the last block
// may be narrower and of the other form.
#pragma once

#include "common/formats.h"

namespace mfac {

struct Blocks {
  int64_t rank, dim, block_size;  // block_size <= max(1, dim)
  MFAC_HOST_DEVICE int64_t count() const { return (dim + block_size - 1) / block_size; }
  MFAC_HOST_DEVICE int64_t order() const { return rank < block_size ? rank : block_size; }  // of the largest factor
  MFAC_HOST_DEVICE int64_t begin(int64_t b) const { return b * block_size; }
  MFAC_HOST_DEVICE int64_t cols(int64_t b) const { return dim - begin(b) < block_size ? dim - begin(b) : block_size; }
  MFAC_HOST_DEVICE bool is_dual(int64_t b) const { return rank < cols(b); }
  MFAC_HOST_DEVICE int64_t order(int64_t b) const { return is_dual(b) ? rank : cols(b); }
};

}  // namespace mfac
