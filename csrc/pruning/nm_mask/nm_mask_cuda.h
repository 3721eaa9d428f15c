// Launcher of the CUDA twin of nm_mask: pointers to device memory, a stream, the launch's error.
#pragma once

#include <algorithm>

#include "common/formats.h"

namespace mfac::cuda {

constexpr int kMaskEntries = 2048;  // of a block at most
static_assert(kMaskEntries % kMostInGroup == 0);

// How scores [outer, axis, inner] are cut up. A slab is all groups of one outer index at one place
// of the axis: `group` rows of `inner` columns, one after the other in memory. A block takes slabs,
// or columns of one that is too long.
struct MaskShape {
  int64_t outer, axis, inner;
  int keep, group;
  int columns, slabs;  // of a block

  MaskShape(int64_t outer, int64_t axis, int64_t inner, int64_t keep, int64_t group)
      : outer(outer), axis(axis), inner(inner), group(int(std::max<int64_t>(1, std::min(group, axis)))) {
    this->keep = int(std::min<int64_t>(keep, this->group));
    const int64_t most = kMaskEntries / this->group, blocks = std::max<int64_t>(1, (inner + most - 1) / most);
    columns = int(std::max<int64_t>(1, (inner + blocks - 1) / blocks));
    slabs = columns < inner ? 1 : std::max(1, kMaskEntries / (this->group * columns));
  }
  int64_t groups() const { return (axis + group - 1) / group; }  // along the axis
  int64_t column_blocks() const { return (inner + columns - 1) / columns; }
  int64_t blocks() const { return (outer * groups() + slabs - 1) / slabs * column_blocks(); }
};

// mask <- which scores are kept
template <typename T>
int nm_mask(const T* scores, const MaskShape& shape, bool* mask, void* stream);

}  // namespace mfac::cuda
