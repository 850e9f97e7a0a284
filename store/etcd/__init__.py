"""The store on an etcd cluster, by gRPC (``weft[cluster]``): ``client.open_etcd``."""
