// What was launched, for Python: a line for every kernel, its name, and the integer arguments of
// its launches, all separated by tabs.
#include "cuda_on_cpu.h"

extern "C" __attribute__((visibility("default"))) const char* mfac_simt_launches() {
  static std::string report;
  report.clear();
  for (const auto& [name, sizes] : simt::launches()) {
    report += name;
    for (const std::string& size : sizes) report += "\t" + size;
    report += "\n";
  }
  return report.c_str();
}
