#include "daemon/core/scheduler.hpp"

#include "test/unit/daemon/harness.hpp"

using namespace flotilla;
using namespace flotilla::daemon;
using flotilla::daemon::test::Harness;

TEST_CASE("jobs start in order, as many as fit") {
  Harness h;
  h.running(3);
  std::vector<JobId> jobs;
  for (int i = 0; i < 5; ++i) jobs.push_back(h.submit(h.command()));
  h.place();
  for (int i = 0; i < 5; ++i) CHECK(h.state(jobs[i]) == (i < 3 ? v1::JOB_DISPATCHED : v1::JOB_QUEUED));
  h.report_end(jobs[1]);
  h.place();
  CHECK(h.state(jobs[3]) == v1::JOB_DISPATCHED);
  CHECK(h.state(jobs[4]) == v1::JOB_QUEUED);
}

TEST_CASE("labels: the pilot's, its resource's name, or any") {
  Harness h;
  const PilotId blue = h.running(1, "blue"), green = h.running(1, "green");
  const JobId on_green = h.submit(h.command("green")), anywhere = h.submit(h.command()), on_local = h.submit(h.command("local")),
              nowhere = h.submit(h.command("red"));
  h.place();
  CHECK(h.core.state().job(on_green)->node.pilot == green);
  CHECK(h.core.state().job(anywhere)->node.pilot == blue);
  CHECK(h.state(on_local) == v1::JOB_QUEUED);  // all slots of resource local are taken
  CHECK(h.state(nowhere) == v1::JOB_QUEUED);
}

TEST_CASE("a wide job does not starve behind narrow ones") {
  Harness h;
  const PilotId pilot = h.running(4);
  std::vector<JobId> narrow;
  for (int i = 0; i < 4; ++i) narrow.push_back(h.submit(h.command()));
  h.place();
  const JobId wide = h.submit(h.command("", 4));
  std::vector<JobId> later;
  for (int i = 0; i < 20; ++i) later.push_back(h.submit(h.command()));
  for (int i = 0; i < 4; ++i) {
    CHECK(h.state(wide) == v1::JOB_QUEUED);
    h.report_end(narrow[i]);
    h.place();
    if (i < 3) CHECK(h.state(later[0]) == v1::JOB_QUEUED);
  }
  CHECK(h.state(wide) == v1::JOB_DISPATCHED);
  CHECK(h.core.state().node({pilot, 0})->slots_used == 4);
}

TEST_CASE("a wide job holds back one node only") {
  Harness h;
  const PilotId first = h.running(2), second = h.running(2);
  const JobId a = h.submit(h.command()), b = h.submit(h.command("", 2));
  h.place();
  CHECK(h.core.state().job(a)->node.pilot == first);
  CHECK(h.core.state().job(b)->node.pilot == second);
  const JobId wide = h.submit(h.command("", 2)), narrow = h.submit(h.command());
  h.place();
  CHECK(h.state(wide) == v1::JOB_QUEUED);
  CHECK(h.state(narrow) == v1::JOB_QUEUED);  // the one free slot is on the node kept for the wide job
  const PilotId third = h.running(1);
  h.place();
  CHECK(h.core.state().job(narrow)->node.pilot == third);
}

TEST_CASE("a job that no node could carry holds back nobody") {
  Harness h;
  h.running(2);
  const JobId giant = h.submit(h.command("", 64)), small = h.submit(h.command());
  h.place();
  CHECK(h.state(giant) == v1::JOB_QUEUED);
  CHECK(h.state(small) == v1::JOB_DISPATCHED);
  CHECK(why(h.core.state(), *h.core.state().job(giant)).sentence.find("64 slots") != std::string::npos);
}

TEST_CASE("why says what stands in the way") {
  Harness h;
  const JobId job = h.submit(h.command("gpu"));
  auto sentence = [&] { return why(h.core.state(), *h.core.state().job(job)).sentence; };
  auto passes = [&](JobId id) { return why(h.core.state(), *h.core.state().job(id)).transient; };
  CHECK(sentence().find("no pilot has the label 'gpu'") != std::string::npos);
  CHECK_FALSE(passes(job));
  const PilotId pilot = h.start("local", "gpu", 1);
  CHECK(sentence().find("still starting") != std::string::npos);
  CHECK(passes(job));
  CHECK(h.join(pilot, 1).error().empty());
  const JobId first = h.submit(h.command("gpu"));
  h.place();
  CHECK(h.state(job) == v1::JOB_DISPATCHED);
  CHECK(why(h.core.state(), *h.core.state().job(first)).sentence.find("slots that it could use are taken") != std::string::npos);
  CHECK(passes(first));
  const JobId wide = h.submit(h.command("gpu", 64));
  CHECK(why(h.core.state(), *h.core.state().job(wide)).sentence.find("flotilla pilot start RESOURCE --slots 64") != std::string::npos);
  CHECK_FALSE(passes(wide));
  h.core.on_node_unlinked({pilot, 0}, "cut", h.now, h.out);
  CHECK(why(h.core.state(), *h.core.state().job(first)).sentence.find("link") != std::string::npos);
  CHECK_FALSE(passes(first));
}
