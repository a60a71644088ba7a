"""gRPC and the services of tensorflow-serving-api; apart from `_protos`, so that only talking to a server imports gRPC.

mypy sees every name here as `Any`; they are classes at run time.
"""

from __future__ import annotations

import grpc
from tensorflow_serving.apis.get_model_status_pb2 import GetModelStatusRequest, ModelVersionStatus
from tensorflow_serving.apis.model_service_pb2_grpc import ModelServiceStub
from tensorflow_serving.apis.prediction_service_pb2_grpc import PredictionServiceStub

__all__ = ["GetModelStatusRequest", "ModelServiceStub", "ModelVersionStatus", "PredictionServiceStub", "grpc"]
