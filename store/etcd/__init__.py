"""The store on an etcd cluster, by gRPC (the extra ``cluster``): ``client.open_etcd``."""
