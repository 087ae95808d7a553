// The part of OpenMP that torch's loops use, by threads that ThreadSanitizer sees: a team is started for every region
// and joined after it. GCC's own library is not instrumented, and its barriers would look like races. Loaded before it.

#include <atomic>
#include <mutex>
#include <thread>
#include <vector>

namespace {

thread_local int number = 0, team = 1;
thread_local bool inside = false;
std::atomic<int> most{2};
std::recursive_mutex critical;

void run(void (*body)(void*), void* data, int k, int n) {
  const int outer_number = number, outer_team = team;
  const bool outer_inside = inside;
  number = k, team = n, inside = n > 1 || outer_inside;
  body(data);
  number = outer_number, team = outer_team, inside = outer_inside;
}

}  // namespace

extern "C" {

void GOMP_parallel(void (*body)(void*), void* data, unsigned threads, unsigned) {
  const int n = inside ? 1 : threads != 0 ? static_cast<int>(threads) : most.load();
  std::vector<std::thread> others;
  for (int k = 1; k < n; ++k) others.emplace_back(run, body, data, k, n);
  run(body, data, 0, n);
  for (auto& other : others) other.join();
}

int omp_get_thread_num() { return number; }
int omp_get_num_threads() { return team; }
int omp_get_max_threads() { return most.load(); }
int omp_in_parallel() { return inside; }
void omp_set_num_threads(int n) { most.store(n); }
void GOMP_critical_start() { critical.lock(); }
void GOMP_critical_end() { critical.unlock(); }
}
