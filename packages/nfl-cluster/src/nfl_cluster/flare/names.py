"""Names that the kits, the job and the processes must agree on; imports nothing, so anybody may read them."""

FLARE_PROJECT = "nfl"
ORGANISATION = "nfl"
ADMIN = "admin@nfl.local"
ROOT_COURIER = "nfl_cluster.flare.courier.RootCourier"
SITE_COURIER = "nfl_cluster.flare.courier.SiteCourier"
CLIENT_LAUNCHER = "nfl_cluster.flare.launchers.ClientLauncher"
SERVER_LAUNCHER = "nfl_cluster.flare.launchers.ServerLauncher"
LOOPBACK_BUILDER = "nfl_cluster.flare.builders.LoopbackBuilder"
SITE_VARIABLE = "NFL_SITE"  # name of the site; FLARE's server calls itself by the project's name
MAILBOX_VARIABLE = "NFL_MAILBOX"  # folder of the site's mailbox; set for the FLARE parent, inherited by its job process
TOPIC = "nfl.mail"
TLS_VARIABLE = "GRPC_SSL_CIPHER_SUITES"
# No usable TLS 1.2 suite: holds grpc to TLS 1.3 on both sides; FLARE itself cannot be told (docs/adr/0002).
TLS_1_3_ONLY = "ECDHE-PSK-AES128-CBC-SHA"
