// prefer_huge_pages_(memory): large pages for a window before its first write. Its passes follow
// eight rows at a time, which lie in as many pages, and wait less for their addresses. Not for
// results that are written once: large pages can take longer to come than small ones
// (docs/benchmarks.md).
#include <cstdint>

#if defined(__linux__)
#include <sys/mman.h>
#endif

#include "common/adapter.h"

namespace mfac {
namespace {

// A hint, for the part of the memory that can hold large pages: where it is not taken, nothing
// changes.
void prefer_huge_pages_cpu(Tensor memory) {
  STD_TORCH_CHECK(memory.is_contiguous(), "prefer_huge_pages_: Parameter `memory` should be contiguous.",
                  found(memory));
#if defined(__linux__) && defined(MADV_HUGEPAGE)
  constexpr uintptr_t kHugePage = uintptr_t{1} << 21;
  const uintptr_t address = reinterpret_cast<uintptr_t>(memory.mutable_data_ptr());
  const uintptr_t begin = (address + kHugePage - 1) & ~(kHugePage - 1);
  const uintptr_t end = (address + memory.numel() * memory.element_size()) & ~(kHugePage - 1);
  if (end > begin) madvise(reinterpret_cast<void*>(begin), end - begin, MADV_HUGEPAGE);
#endif
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(mfac, CPU, m) { m.impl("prefer_huge_pages_", TORCH_BOX(&prefer_huge_pages_cpu)); }

}  // namespace mfac
