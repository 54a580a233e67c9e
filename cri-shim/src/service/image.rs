//! The ImageService: each RPC hands on to `images`.

use rrun_proto::v1;
use rrun_proto::v1::image_service_server::ImageService;
use tonic::{Request, Response};

use super::{Answer, Streamed, done, images, pieces, stream};
use crate::shim::Shim;

/// The ImageService of a shim.
pub struct Image {
    shim: Shim,
}

impl Image {
    /// Serves that one.
    pub fn new(shim: Shim) -> Image {
        Image { shim }
    }
}

#[tonic::async_trait]
impl ImageService for Image {
    type StreamImagesStream = Streamed<v1::StreamImagesResponse>;

    async fn list_images(&self, request: Request<v1::ListImagesRequest>) -> Answer<v1::ListImagesResponse> {
        let r = request.into_inner();
        let images = images::list(&self.shim, r.filter.as_ref());
        Ok(Response::new(v1::ListImagesResponse { images }))
    }

    async fn stream_images(&self, request: Request<v1::StreamImagesRequest>) -> Answer<Self::StreamImagesStream> {
        let r = request.into_inner();
        let pieces = pieces(images::list(&self.shim, r.filter.as_ref()));
        Ok(stream(pieces.map(|images| v1::StreamImagesResponse { images })))
    }

    async fn image_status(&self, request: Request<v1::ImageStatusRequest>) -> Answer<v1::ImageStatusResponse> {
        let r = request.into_inner();
        Ok(Response::new(images::status(&self.shim, &r)?))
    }

    async fn pull_image(&self, request: Request<v1::PullImageRequest>) -> Answer<v1::PullImageResponse> {
        let r = request.into_inner();
        let image_ref = images::pull(&self.shim, r).await?;
        Ok(Response::new(v1::PullImageResponse { image_ref }))
    }

    async fn remove_image(&self, request: Request<v1::RemoveImageRequest>) -> Answer<v1::RemoveImageResponse> {
        let r = request.into_inner();
        images::remove(&self.shim, &r).await?;
        Ok(done())
    }

    async fn image_fs_info(&self, _: Request<v1::ImageFsInfoRequest>) -> Answer<v1::ImageFsInfoResponse> {
        Ok(Response::new(images::fs_info(&self.shim).await?))
    }
}
