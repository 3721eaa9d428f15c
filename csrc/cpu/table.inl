// Instantiates every kernel for one instruction set and fills its table. Included by <isa>.cpp,
// which defines MFAC_LANES, MFAC_TILE_ROWS and MFAC_ISA and sets the target pragma. MFAC_PAIRED_ISA: a second table
// with paired products (cpu/paired.inl).

namespace mfac {
namespace {

#include "cpu/vec.inl"

#include "cpu/tile.inl"

#include "cpu/paired.inl"

#include "window/window_dot/window_dot_cpu.inl"

#include "window/window_combine/int8_digits.inl"

#include "window/window_combine/window_combine_cpu.inl"

#include "window/window_push/window_push_cpu.inl"

#include "window/topk/topk_cpu.inl"

#include "curvature/squared_norms/squared_norms_cpu.inl"

#include "pruning/nm_mask/nm_mask_cpu.inl"

#include "curvature/whitened_norms/whitened_norms_cpu.inl"

#include "curvature/gram/gram_cpu.inl"

#include "window/capacitance/capacitance_cpu.inl"

#include "curvature/block_fisher/cholesky.inl"

#include "curvature/block_fisher/block_fisher_cpu.inl"

template <typename T>
constexpr WindowTable<T> window_table_of() {
  return {
      {window_dot_rows<T, float>, window_combine_columns<T, float>, round_row<T, float>},
      {window_dot_rows<T, double>, window_combine_columns<T, double>, round_row<T, double>},
      {topk_dot_entries<T, float>, topk_add_entries<T>},
      {topk_dot_entries<T, double>, topk_add_entries<T>},
  };
}

template <>
constexpr WindowTable<int8_t> window_table_of<int8_t>() {  // rounded by quantize_row
  return {
      {window_dot_rows<int8_t, float>, window_combine_columns<int8_t, float>, nullptr},
      {window_dot_rows<int8_t, double>, window_combine_columns<int8_t, double>, nullptr},
      {nullptr, nullptr},
      {nullptr, nullptr},
  };
}

template <typename T>
constexpr TypedKernels<T> typed_kernels() {
  return {block_factor<T>, block_ihvp<T>, block_matvec<T>, block_inverse_diagonal<T>};
}

template <typename T, typename C, bool paired>
constexpr StaticKernels<T, C> static_kernels_of() {
  StaticKernels<T, C> kernels = {
      {kPanelWidth<C>, kTileRows, gram_pack<T, C, paired>, gram_rows<C, paired>, nullptr},
      {kPanelWidth<C>, kTileRows, gram_pack<T, C, false>, gram_rows<C, false>, nullptr},
      {kPanelWidth<C>, kTileRows, whiten_panel<T, C>, whiten_tile<C, paired>, nullptr},
  };
  if constexpr (paired) {
    kernels.gram.add_pair_sums = add_pair_sums<kPanelWidth<C>, C>;
    kernels.whiten.pack = whiten_paired_panel<T, C>;
    kernels.whiten.add_pair_sums = add_pair_sums<kTileRows, C>;
  }
  return kernels;
}

template <bool paired>
constexpr Kernels table_of(const char* isa) {
  return {
      isa,
      typed_kernels<float>(),
      typed_kernels<double>(),
      window_table_of<float>(),
      window_table_of<double>(),
      window_table_of<bf16>(),
      window_table_of<f16>(),
      window_table_of<int8_t>(),
      descend_columns<float>,
      descend_columns<double>,
      vector_magnitude<float>,
      vector_magnitude<double>,
      quantize_row,
      int8_dot_rows,
      squared_norms_rows<float>,
      squared_norms_rows<double>,
      nm_mask_groups<float>,
      nm_mask_groups<double>,
      static_kernels_of<float, float, paired>(),
      static_kernels_of<float, double, paired>(),
      static_kernels_of<double, double, paired>(),
      symmetric_matvec_rows,
      symmetric_rank2_rows,
  };
}

}  // namespace

#define MFAC_STRING(x) #x
#define MFAC_NAME(x) MFAC_STRING(x)
#define MFAC_JOIN(a, b) a##b
#define MFAC_TABLE_OF(isa) MFAC_JOIN(kernels_, isa)

extern const Kernels MFAC_TABLE_OF(MFAC_ISA) = table_of<false>(MFAC_NAME(MFAC_ISA));
#if defined(MFAC_PAIRED_ISA)
extern const Kernels MFAC_TABLE_OF(MFAC_PAIRED_ISA) = table_of<true>(MFAC_NAME(MFAC_PAIRED_ISA));
#endif

}  // namespace mfac
