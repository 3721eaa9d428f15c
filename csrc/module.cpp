// mfac._C: importing it registers torch.ops.mfac (the other files of this folder) and says how it
// was built.
#include <pybind11/pybind11.h>

#include <string>

#include "cpu/kernels.h"
#include "window/topk/topk_layout.h"

namespace py = pybind11;

namespace {

std::string compiler() {
#if defined(__clang__)
  return "clang " __clang_version__;
#elif defined(__GNUC__)
  return "gcc " __VERSION__;
#else
  return "unknown";
#endif
}

py::dict build_info() {
  py::dict info;
  info["version"] = MFAC_STRING_OF(MFAC_VERSION);
  info["compiler"] = compiler();
  info["cplusplus"] = static_cast<long>(__cplusplus);
  info["isas_built"] = py::str(mfac::isas_built()).attr("split")(",");
  info["isa_chosen"] = mfac::kernel_table().isa;
  info["oldest_torch"] = MFAC_STRING_OF(MFAC_OLDEST_TORCH);
#ifdef MFAC_CUDA_TOOLKIT
  info["cuda_toolkit"] = MFAC_STRING_OF(MFAC_CUDA_TOOLKIT);
  info["cuda_architectures"] = py::str(MFAC_STRING_OF(MFAC_CUDA_ARCHITECTURES)).attr("split")(",");
#else
  info["cuda_toolkit"] = py::none();
  info["cuda_architectures"] = py::list();
#endif
  return info;
}

// The sizes that Python has to agree on with the kernels.
py::dict limits() {
  py::dict sizes;
  sizes["scale_columns"] = mfac::kScaleColumns;
  sizes["packet_bytes"] = mfac::kPacketBytes;
  sizes["topk_tile_columns"] = mfac::kTopKTileColumns;
  sizes["topk_block_columns"] = mfac::kTopKBlockColumns;
  sizes["nm_group"] = mfac::kMostInGroup;
  return sizes;
}

}  // namespace

PYBIND11_MODULE(_C, m) {
  m.doc() = "The compiled core of mfac.";
  m.def("build_info", &build_info,
        "How this extension was built: the package's version, compiler, C++ standard, CPU instruction sets built and "
        "the one chosen on this "
        "machine, oldest torch it loads under, CUDA toolkit and architectures (None and [] without).");
  m.def("limits", &limits,
        "Sizes of the kernels: columns of an int8 row that share a scale, bytes of a packet, columns of a tile and of "
        "the widest block of a sparse row, most scores of an N:M group.");
}
