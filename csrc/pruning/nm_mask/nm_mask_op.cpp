// nm_mask(scores, keep, group) -> which entries are among the `keep` highest of their group along
// the axis.
#include "pruning/nm_mask/nm_mask_checks.h"

namespace mfac {
namespace {

constexpr int64_t kGroupsOfTask = 256;

template <typename T>
void mask_groups(const T* scores, const NMGroups& groups, int64_t count, bool* mask) {
  parallel_tasks(ceil_div(count, kGroupsOfTask), kGroupsOfTask * groups.rows, [&](int64_t begin, int64_t end) {
    kernels<NMMaskKernels<T>>().nm_mask(scores, groups, begin * kGroupsOfTask, std::min(count, end * kGroupsOfTask),
                                        mask);
  });
}

Tensor nm_mask_cpu(const Tensor& scores, int64_t keep, int64_t group) {
  check_nm_mask(scores, keep, group);
  const int64_t outer = scores.size(0), axis = scores.size(1), inner = scores.size(2);
  Tensor mask = torch::stable::new_empty(scores, {outer, axis, inner}, ScalarType::Bool);
  const int64_t whole = axis / group, rest = axis % group;
  dispatch_float(scores, [&](auto* type) {
    using T = element_t<decltype(type)>;
    const T* from = elements<T>(scores);
    bool* to = mutable_elements<bool>(mask);
    mask_groups(from, {whole, inner, axis * inner, group * inner, group, keep}, outer * whole * inner, to);
    // The last group of a row, where it is not complete.
    const int64_t last = whole * group * inner;
    if (rest > 0)
      mask_groups(from + last, {1, inner, axis * inner, 0, rest, std::min(keep, rest)}, outer * inner, to + last);
  });
  return mask;
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(mfac, CPU, m) { m.impl("nm_mask", TORCH_BOX(&nm_mask_cpu)); }

}  // namespace mfac
