// Chooses the table of kernels once, on first use.
#include <cstdlib>
#include <cstring>

#include "cpu/kernels.h"

namespace mfac {
namespace {

// Best last.
const KernelTable* const kBuilt[] = {
    &kernels_portable,
#if defined(__x86_64__)
    &kernels_avx2,
    &kernels_avx512,
#endif
};

bool machine_has(const KernelTable& table) {
#if defined(__x86_64__)
  if (&table == &kernels_avx2)
    return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("f16c");
  if (&table == &kernels_avx512)
    return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512dq") &&
           __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512bw") &&
           __builtin_cpu_supports("avx512vnni");
#endif
  return &table == &kernels_portable;
}

const KernelTable& choose() {
  const char* wanted = std::getenv("MFAC_CPU_ISA");
  const KernelTable* best = &kernels_portable;
  for (const KernelTable* table : kBuilt) {
    if (!machine_has(*table)) continue;
    best = table;
    if (wanted != nullptr && std::strcmp(wanted, table->isa) == 0) break;
  }
  return *best;
}

}  // namespace

const KernelTable& kernel_table() {
  static const KernelTable& chosen = choose();
  return chosen;
}

const char* isas_built() {
#if defined(__x86_64__)
  return "portable,avx2,avx512";
#else
  return "portable";
#endif
}

}  // namespace mfac
