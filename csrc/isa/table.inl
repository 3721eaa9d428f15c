// Instantiates every kernel for one instruction set and fills its table. Included by <isa>.cpp,
// which defines MFAC_LANES, MFAC_GRAM_ROWS and MFAC_ISA and sets the target pragma.

namespace mfac {
namespace {

#include "isa/vec.inl"

#include "window_dot/window_dot_cpu.inl"

#include "window_combine/window_combine_cpu.inl"

#include "gram/gram_cpu.inl"

#include "capacitance/capacitance_cpu.inl"

#include "block_fisher/block_fisher_cpu.inl"

template <typename T>
constexpr TypedKernels<T> typed_kernels() {
  return {
      {window_dot_rows<T, float>, window_combine_columns<T, float>},
      {window_dot_rows<T, double>, window_combine_columns<T, double>},
      gram_pack<T>,
      block_factor<T>,
      block_ihvp<T>,
      block_matvec<T>,
      block_inverse_diagonal<T>,
  };
}

}  // namespace

#define MFAC_STRING(x) #x
#define MFAC_NAME(x) MFAC_STRING(x)
#define MFAC_JOIN(a, b) a##b
#define MFAC_TABLE_OF(isa) MFAC_JOIN(kernels_, isa)

extern const Kernels MFAC_TABLE_OF(MFAC_ISA) = {
    MFAC_NAME(MFAC_ISA), typed_kernels<float>(), typed_kernels<double>(), kGramPanelRows,
    gram_panels,         symmetric_matvec_rows,  symmetric_rank2_rows,
};

}  // namespace mfac
