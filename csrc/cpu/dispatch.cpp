// Chooses the table of kernels once, on first use.
#include <cstdlib>
#include <cstring>

#include "cpu/kernels.h"

namespace mfac {
namespace {

// Best last.
const Kernels* const kBuilt[] = {
    &kernels_portable,
#if defined(__x86_64__)
    &kernels_avx2,
    &kernels_avx512,
    &kernels_zen4,
#endif
};

bool machine_has(const Kernels& table) {
#if defined(__x86_64__)
  if (&table == &kernels_avx2)
    return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("f16c");
  if (&table == &kernels_zen4 && !__builtin_cpu_is("amd")) return false;  // all of AMD's with AVX-512 have the adders
  if (&table == &kernels_avx512 || &table == &kernels_zen4)
    return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512dq") &&
           __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512bw") &&
           __builtin_cpu_supports("avx512vnni");
#endif
  return &table == &kernels_portable;
}

const Kernels& choose() {
  const char* wanted = std::getenv("MFAC_CPU_ISA");
  const Kernels* best = &kernels_portable;
  for (const Kernels* table : kBuilt) {
    if (!machine_has(*table)) continue;
    best = table;
    if (wanted != nullptr && std::strcmp(wanted, table->isa) == 0) break;
  }
  return *best;
}

}  // namespace

const Kernels& kernels() {
  static const Kernels& chosen = choose();
  return chosen;
}

const char* isas_built() {
#if defined(__x86_64__)
  return "portable,avx2,avx512,zen4";
#else
  return "portable";
#endif
}

}  // namespace mfac
