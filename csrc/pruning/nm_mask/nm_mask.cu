// Launcher of nm_mask: one launch.
#include "pruning/nm_mask/nm_mask.cuh"

namespace mfac::cuda {

template <typename T>
int nm_mask(const T* scores, const MaskShape& shape, bool* mask, void* stream) {
  if (shape.outer == 0 || shape.axis == 0 || shape.inner == 0) return 0;
  return MFAC_LAUNCH((nm_mask_kernel<T>), dim3(unsigned(shape.blocks())), dim3(kMaskThreads), stream, scores,
                     shape.outer, shape.axis, shape.inner, shape.keep, shape.group, shape.columns, shape.slabs,
                     shape.column_blocks(), mask);
}

template int nm_mask<float>(const float*, const MaskShape&, bool*, void*);
template int nm_mask<double>(const double*, const MaskShape&, bool*, void*);

}  // namespace mfac::cuda
