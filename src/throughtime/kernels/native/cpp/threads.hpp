// A team of threads that run one function together and can wait for each other within it.
#pragma once

#include <atomic>
#include <functional>

namespace throughtime {

// All members wait here for the last one. Short waits spin; long ones give the core to whoever needs it.
class Barrier {
  public:
    void wait(int members);

  private:
    std::atomic<int> arrived_{0};
    std::atomic<unsigned> round_{0};
};

// One member's view of its team.
struct Member {
    int index;
    int count;
    Barrier* barrier;

    void wait() const {
        if (count > 1) barrier->wait(count);
    }
};

// Runs `work` on up to `threads` threads, the caller's among them, and returns when all are done.
//
// They are the threads that PyTorch's own operations use, where those are GNU OpenMP's: after such an operation they
// keep their cores busy for some milliseconds, waiting for the next, and threads of our own would have to share with
// them. Elsewhere, and in a process that has forked, which OpenMP does not survive, they are our own, made once and kept.
// While one Python thread has them, another's call runs on its own thread alone, so that the cores are never
// oversubscribed; results are the same for any number of threads.
void run_together(int threads, const std::function<void(const Member&)>& work);

}  // namespace throughtime
