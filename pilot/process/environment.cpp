#include "pilot/process/environment.hpp"

#include <algorithm>
#include <array>

extern char** environ;

namespace flotilla::pilot {
namespace {

std::string_view name_of(std::string_view entry) { return entry.substr(0, entry.find('=')); }

const std::string* find_entry(const std::vector<std::string>& entries, std::string_view name) {
  for (const auto& entry : entries)
    if (entry.size() > name.size() && entry[name.size()] == '=' && entry.compare(0, name.size(), name) == 0) return &entry;
  return nullptr;
}

}  // namespace

bool is_launcher_variable(std::string_view name) {
  static constexpr std::array site_settings = {"SLURM_CONF",       "SGE_ROOT",       "SGE_CELL",      "SGE_CLUSTER_NAME",
                                               "SGE_QMASTER_PORT", "SGE_EXECD_PORT", "LSF_ENVDIR",    "LSF_BINDIR",
                                               "LSF_LIBDIR",       "LSF_SERVERDIR",  "PBS_CONF_FILE", "PBS_EXEC"};
  static constexpr std::array prefixes = {"OMPI_",           "PMIX_",        "PMI_",   "PMI2_",    "PRTE_",   "ORTE_",
                                          "OPAL_",           "HYDRA_",       "HYDI_",  "MPIEXEC_", "MPIRUN_", "MPI_LOCALNRANKS",
                                          "MPI_LOCALRANKID", "I_MPI_HYDRA_", "SLURM_", "SLURMD_",  "SBATCH_", "SALLOC_",
                                          "SRUN_",           "PBS_",         "SGE_",   "LSB_",     "LSF_",    "LS_SUBCWD",
                                          "_CONDOR_",        "FLOTILLA_"};
  static constexpr std::array names = {"PE_HOSTFILE", "NSLOTS",      "NHOSTS",    "NQUEUES", "JOB_ID",  "JOB_NAME", "JOB_SCRIPT",
                                       "TASK_ID",     "ENVIRONMENT", "RESTARTED", "QUEUE",   "REQUEST", "ARC",      "BATCH_SYSTEM"};
  if (std::find(site_settings.begin(), site_settings.end(), name) != site_settings.end()) return false;
  if (std::find(names.begin(), names.end(), name) != names.end()) return true;
  return std::any_of(prefixes.begin(), prefixes.end(), [&](const char* prefix) { return name.starts_with(prefix); });
}

Environment::Environment(std::vector<std::string> entries) {
  std::erase_if(entries, [](const std::string& entry) { return entry.find('=') == std::string::npos || entry[0] == '='; });
  base_ = std::make_shared<std::vector<std::string>>(std::move(entries));
}

Environment Environment::of_this_process() {
  std::vector<std::string> entries;
  for (char** entry = environ; entry && *entry; ++entry) entries.emplace_back(*entry);
  return Environment(std::move(entries));
}

Environment Environment::cleaned() const {
  auto all = entries();
  std::erase_if(all, [](const std::string& entry) { return is_launcher_variable(name_of(entry)); });
  return Environment(std::move(all));
}

void Environment::set(std::string_view name, std::string_view value) {
  std::string entry;
  entry.reserve(name.size() + value.size() + 1);
  entry.append(name).append("=").append(value);
  for (auto& own : own_)
    if (name_of(own) == name) {
      own = std::move(entry);
      return;
    }
  own_.push_back(std::move(entry));
}

std::optional<std::string_view> Environment::get(std::string_view name) const {
  const std::string* entry = find_entry(own_, name);
  if (!entry) entry = find_entry(*base_, name);
  if (!entry) return std::nullopt;
  return std::string_view(*entry).substr(name.size() + 1);
}

std::vector<char*> Environment::pointers() const {
  std::vector<char*> all;
  all.reserve(base_->size() + own_.size() + 1);
  for (const auto& entry : *base_)
    if (own_.empty() || !find_entry(own_, name_of(entry))) all.push_back(const_cast<char*>(entry.c_str()));
  for (const auto& entry : own_) all.push_back(const_cast<char*>(entry.c_str()));
  all.push_back(nullptr);
  return all;
}

std::vector<std::string> Environment::entries() const {
  std::vector<std::string> all;
  auto pointers = this->pointers();
  for (char* entry : pointers)
    if (entry) all.emplace_back(entry);
  return all;
}

}  // namespace flotilla::pilot
