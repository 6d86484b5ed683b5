#include "support.hpp"

#include <stdexcept>

namespace raypq {

namespace {

std::vector<const Isa*> runnable() {
  std::vector<const Isa*> isas;
#if defined(__x86_64__)
  __builtin_cpu_init();
  if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
      __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq") &&
      __builtin_cpu_supports("bmi2"))
    isas.push_back(&isa_avx512);
  if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma")) isas.push_back(&isa_avx2);
#endif
  isas.push_back(&isa_baseline);
  return isas;
}

}  // namespace

const Isa& choose_isa(const std::string& name) {
  std::string known;
  for (const Isa* isa : runnable()) {
    if (name.empty() || name == isa->name) return *isa;
    known += (known.empty() ? "" : ", ") + std::string(isa->name);
  }
  throw std::invalid_argument("instruction set '" + name + "' is not available here; there are: " +
                              known);
}

std::vector<std::string> available_isas() {
  std::vector<std::string> names;
  for (const Isa* isa : runnable()) names.push_back(isa->name);
  return names;
}

}  // namespace raypq
