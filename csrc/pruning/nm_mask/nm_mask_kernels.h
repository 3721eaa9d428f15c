// The CPU kernel of nm_mask.
#pragma once

#include "cpu/instances.h"

namespace mfac {

// Groups of `rows` scores of which `keep` are kept: `along` of them along the axis, for each of
// `inner` columns and each outer index. Entries of a group lie `inner` apart.
struct NMGroups {
  int64_t along, inner, outer_stride, group_stride, rows, keep;
};

template <typename T>
struct NMMaskKernels {
  // mask[e] <- whether scores[e] is kept, for all entries of the groups [begin, end), columns first
  void (*nm_mask)(const T* scores, const NMGroups& groups, int64_t begin, int64_t end, bool* mask);
};

using NMMaskRoom = ForVectors<NMMaskKernels>;

}  // namespace mfac
