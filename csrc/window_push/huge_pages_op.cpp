// prefer_huge_pages_(memory): large pages for a window before its first write. Its passes follow eight rows at a time,
// which lie in as many pages, and wait less for their addresses.
#include "adapter.h"
#include "huge_pages.h"

namespace mfac {
namespace {

void prefer_huge_pages_cpu(Tensor memory) {
  STD_TORCH_CHECK(memory.is_contiguous(), "prefer_huge_pages_: Parameter `memory` should be contiguous.");
  prefer_huge_pages(memory.mutable_data_ptr(), memory.numel() * memory.element_size());
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(mfac, CPU, m) { m.impl("prefer_huge_pages_", TORCH_BOX(&prefer_huge_pages_cpu)); }

}  // namespace mfac
