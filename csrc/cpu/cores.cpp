#include "cpu/cores.h"

#include <time.h>

#include <algorithm>
#include <cmath>
#include <fstream>
#include <limits>
#include <sstream>
#include <string>
#include <thread>
#include <vector>

#ifdef __linux__
#include <sched.h>
#endif

namespace fastrnn::cpu {
namespace {

constexpr double kUnlimited = std::numeric_limits<double>::infinity();
constexpr int64_t kRefresh = 10'000'000;  // nanoseconds for which a thread's affinity mask counts as known

std::atomic<int> assumed{0};
std::atomic<bool> assumed_busy{false};

std::vector<std::string> split(const std::string& text, char at) {
  std::vector<std::string> parts;
  std::istringstream stream(text);
  for (std::string part; std::getline(stream, part, at);) parts.push_back(part);
  return parts;
}

bool has(const std::vector<std::string>& words, const std::string& word) {
  return std::find(words.begin(), words.end(), word) != words.end();
}

std::string contents(const std::string& path) {
  std::ifstream file(path);
  std::ostringstream text;
  if (file) text << file.rdbuf();
  return text.str();
}

double number(const std::string& text) {
  double value = 0;
  return std::istringstream(text) >> value ? value : 0;
}

// Of one group, by its folder; a quota that is not there, or not positive ("max", -1), is none.
double quota_of(const std::string& folder, bool unified) {
  double quota = 0, period = 0;
  if (unified) {
    const std::vector<std::string> both = split(contents(folder + "/cpu.max"), ' ');
    if (both.size() == 2) quota = number(both[0]), period = number(both[1]);
  } else {
    quota = number(contents(folder + "/cpu.cfs_quota_us")), period = number(contents(folder + "/cpu.cfs_period_us"));
  }
  return quota > 0 && period > 0 ? quota / period : kUnlimited;
}

struct Mount {
  std::string group, folder;  // of the hierarchy, what is mounted there
};

// Where the unified hierarchy, or the one that has the CPU's controller, can be seen.
std::vector<Mount> mounts(const std::string& root, bool unified) {
  std::vector<Mount> found;
  for (const std::string& line : split(contents(root + "/proc/self/mountinfo"), '\n')) {
    // number, parent, device, group, folder, options, any others, "-", type, source, options of the hierarchy
    const std::vector<std::string> words = split(line, ' ');
    const auto dash = std::find(words.begin(), words.end(), "-");
    if (dash - words.begin() < 6 || words.end() - dash < 4) continue;
    const bool fits = unified ? dash[1] == "cgroup2" : dash[1] == "cgroup" && has(split(dash[3], ','), "cpu");
    if (fits) found.push_back({words[3] == "/" ? "" : words[3], words[4]});
  }
  return found;
}

int count_cores() {
#ifdef __linux__
  for (int most = 1024; most <= 1 << 20; most *= 2) {
    cpu_set_t* const mask = CPU_ALLOC(most);
    if (mask == nullptr) break;
    const size_t size = CPU_ALLOC_SIZE(most);
    const int count = sched_getaffinity(0, size, mask) == 0 ? CPU_COUNT_S(size, mask) : 0;
    CPU_FREE(mask);
    if (count > 0) return count;
  }
#endif
  const unsigned count = std::thread::hardware_concurrency();
  return count > 0 ? static_cast<int>(count) : std::numeric_limits<int>::max();
}

// As now(), by a clock that ticks a few hundred times a second and is read in a fraction of the time.
int64_t about_now() {
#ifdef CLOCK_MONOTONIC_COARSE
  timespec time{};
  clock_gettime(CLOCK_MONOTONIC_COARSE, &time);
  return int64_t{time.tv_sec} * 1'000'000'000 + time.tv_nsec;
#else
  return now();
#endif
}

}  // namespace

double quota(const std::string& root) {
  double least = kUnlimited;
  for (const std::string& line : split(contents(root + "/proc/self/cgroup"), '\n')) {
    // number, controllers, group; the unified hierarchy's line names no controllers
    const size_t first = line.find(':'), second = line.find(':', first + 1);
    if (first == std::string::npos || second == std::string::npos) continue;
    const std::string controllers = line.substr(first + 1, second - first - 1), group = line.substr(second + 1);
    const bool unified = controllers.empty();
    if (!unified && !has(split(controllers, ','), "cpu")) continue;
    for (const Mount& mount : mounts(root, unified)) {
      // A container may see its own group at the top, whatever it is called outside.
      const bool inside = (group + "/").compare(0, mount.group.size() + 1, mount.group + "/") == 0;
      std::string below = inside ? group.substr(mount.group.size()) : "";
      if (below.find("..") != std::string::npos) below.clear();
      for (;; below.resize(below.rfind('/'))) {
        least = std::min(least, quota_of(root + mount.folder + below, unified));
        if (below.find('/') == std::string::npos) break;
      }
    }
  }
  return least;
}

int cores() {
  const int given = assumed.load(std::memory_order_relaxed);
  if (given > 0) return given;
  static const double limit = std::ceil(quota(""));
  thread_local int known = 0;
  thread_local int64_t until = 0;
  const int64_t time = about_now();
  if (time >= until) known = count_cores(), until = time + kRefresh;
  return limit < known ? static_cast<int>(limit) : known;
}

void assume_cores(int n, bool busy) {
  assumed.store(n, std::memory_order_relaxed);
  assumed_busy.store(busy, std::memory_order_relaxed);
}

int64_t now() {
  timespec time{};
  clock_gettime(CLOCK_MONOTONIC, &time);
  return int64_t{time.tv_sec} * 1'000'000'000 + time.tv_nsec;
}

void Ledger::enter(int64_t alone, int64_t took, int64_t time) {
  constexpr auto kRelaxed = std::memory_order_relaxed;  // of several threads' entries at once, some may miss each other
  int64_t until = until_.load(kRelaxed);
  if (time < until) return;  // begun before the pause
  if (until != 0 && until_.compare_exchange_strong(until, 0, kRelaxed)) {
    balance_.store(kFull, kRelaxed);
    tried_.store(until, kRelaxed);
  }
  int64_t before = balance_.load(kRelaxed), after = 0;
  do {
    after = std::min(before + alone - took, kFull);
  } while (!balance_.compare_exchange_weak(before, after, kRelaxed));
  if (after >= 0) return;
  const bool lasted = time - tried_.load(kRelaxed) > pause_.load(kRelaxed);
  const int64_t times = lasted ? kTimes : std::min(2 * times_.load(kRelaxed), kMostTimes);
  const int64_t pause = std::min(kFull - after, kMostLost) * times;
  times_.store(times, kRelaxed);
  pause_.store(pause, kRelaxed);
  until_.store(time + pause, kRelaxed);
}

Ledger& ledger() {
  static Ledger own;
  return own;
}

bool others_are_busy() {
  return assumed.load(std::memory_order_relaxed) > 0 ? assumed_busy.load(std::memory_order_relaxed) : !ledger().pays();
}

}  // namespace fastrnn::cpu
