//! What an administrator does to etcd, in its own words: margay does none of it.

use prost::Message;
use tonic::Request;
use tonic::client::Grpc;
use tonic::codegen::http::uri::PathAndQuery;
use tonic::transport::Endpoint;
use tonic_prost::ProstCodec;

use crate::etcd::Connector;

#[derive(Clone, PartialEq, Message)]
struct UserAdd {
    #[prost(string, tag = "1")]
    name: String,
    #[prost(string, tag = "2")]
    password: String,
}

#[derive(Clone, PartialEq, Message)]
struct RoleAdd {
    #[prost(string, tag = "1")]
    name: String,
}

#[derive(Clone, PartialEq, Message)]
struct UserGrantRole {
    #[prost(string, tag = "1")]
    user: String,
    #[prost(string, tag = "2")]
    role: String,
}

#[derive(Clone, PartialEq, Message)]
struct Compaction {
    #[prost(int64, tag = "1")]
    revision: i64,
}

#[derive(Clone, PartialEq, Message)]
struct Nothing {}

pub(super) fn ask_for_password(endpoint: &str, password: &str) {
    let (name, password) = ("root".to_owned(), password.to_owned());
    call(endpoint, "/etcdserverpb.Auth/UserAdd", UserAdd { name: name.clone(), password });
    call(endpoint, "/etcdserverpb.Auth/RoleAdd", RoleAdd { name: name.clone() });
    let grant = UserGrantRole { user: name.clone(), role: name };
    call(endpoint, "/etcdserverpb.Auth/UserGrantRole", grant);
    call(endpoint, "/etcdserverpb.Auth/AuthEnable", Nothing {});
}

pub(super) fn compact(endpoint: &str, revision: u64) {
    let revision = i64::try_from(revision).unwrap();
    call(endpoint, "/etcdserverpb.KV/Compact", Compaction { revision });
}

fn call<Q: Message + 'static>(endpoint: &str, method: &'static str, request: Q) {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        let connector = Connector { timeout: super::PATIENCE };
        let endpoint: Endpoint = endpoint.to_owned().try_into().unwrap();
        let mut grpc = Grpc::new(endpoint.connect_with_connector_lazy(connector));
        grpc.ready().await.unwrap();
        let codec = ProstCodec::<Q, Nothing>::default();
        let path = PathAndQuery::from_static(method);
        grpc.unary(Request::new(request), path, codec).await.unwrap();
    });
}
