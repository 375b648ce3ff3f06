// A team of threads that run one function together and can wait for each other within it.
#pragma once

#include <atomic>
#include <functional>

namespace throughtime {

// All members wait here for the last one. Short waits spin; long ones give the core to whoever needs it.
class Barrier {
  public:
    explicit Barrier(int members) : members_(members) {}
    void wait();

  private:
    const int members_;
    std::atomic<int> arrived_{0};
    std::atomic<unsigned> round_{0};
};

// One member's view of its team.
struct Member {
    int index;
    int count;
    Barrier* barrier;

    void wait() const {
        if (count > 1) barrier->wait();
    }
};

// Runs `work` on up to `threads` threads, the caller's among them, and returns when all are done.
//
// The workers are made once and kept. A process that has forked makes its own. While one Python thread has them,
// another's call runs on its own thread alone, so that the cores are never oversubscribed; results are the same for any
// number of threads.
void run_together(int threads, const std::function<void(const Member&)>& work);

}  // namespace throughtime
