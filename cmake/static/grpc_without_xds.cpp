// Takes the place of the object in gRPC's archive that registers xDS (service meshes' configuration), which Flotilla never uses: with it go
// two megabytes of its messages, of the program that is sent to every machine. Fits gRPC 1.51, see flotilla_without_xds.
namespace grpc_core {

class CoreConfiguration {
 public:
  class Builder;
};

void RegisterExtraFilters(CoreConfiguration::Builder*) {}

}  // namespace grpc_core
