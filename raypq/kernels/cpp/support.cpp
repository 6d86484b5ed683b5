#include "support.hpp"

#include <stdexcept>

#if defined(__linux__)
#include <unistd.h>
#endif

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

size_t tile_cache() {
  static const size_t bytes = [] {
    long cache = 0;
#if defined(_SC_LEVEL2_CACHE_SIZE)
    cache = sysconf(_SC_LEVEL2_CACHE_SIZE);
#endif
    constexpr size_t kUsual = size_t(1) << 20, kLeast = size_t(256) << 10;  // of a core
    return std::max(cache > 0 ? size_t(cache) : kUsual, kLeast) / 8 * 5;
  }();
  return bytes;
}

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
