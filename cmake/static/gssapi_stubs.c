/* Debian's libssh.a wants GSSAPI, for which there is no archive. A fully static `flotilla` therefore answers every
   GSSAPI call with a failure: libssh then goes on with the next authentication method. Kerberos works through
   `transport = "openssh"`, which runs the system's own ssh. */

enum { gss_s_failure = 13 << 16 };

struct oid {
  unsigned int length;
  void* elements;
};
static struct oid no_name_type;
void* GSS_C_NT_HOSTBASED_SERVICE = &no_name_type;
void* GSS_C_NT_USER_NAME = &no_name_type;

/* Every function gives its first argument, the minor status, a value, and touches no other. */
#define STUB(name)                         \
  unsigned int name(unsigned int* minor);  \
  unsigned int name(unsigned int* minor) { \
    if (minor) *minor = 0;                 \
    return gss_s_failure;                  \
  }

STUB(gss_accept_sec_context)
STUB(gss_acquire_cred)
STUB(gss_add_oid_set_member)
STUB(gss_create_empty_oid_set)
STUB(gss_delete_sec_context)
STUB(gss_display_name)
STUB(gss_display_status)
STUB(gss_get_mic)
STUB(gss_import_name)
STUB(gss_indicate_mechs)
STUB(gss_init_sec_context)
STUB(gss_inquire_cred)
STUB(gss_inquire_cred_by_mech)
STUB(gss_release_buffer)
STUB(gss_release_cred)
STUB(gss_release_name)
STUB(gss_release_oid)
STUB(gss_release_oid_set)
STUB(gss_test_oid_set_member)
STUB(gss_verify_mic)
STUB(gss_wrap)
STUB(gss_unwrap)
